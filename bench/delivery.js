// delivery.js: what both receivers that are compared do with a delivery before they store it.
//
// They do the same work as the extension: the HMAC over the raw bytes, compared in constant time, before
// anything else looks at the body; then the columns of table events.
'use strict'

const crypto = require('node:crypto')

const signingKey = process.env.SIGNING_KEY
const endpointId = '7d444840-9dc0-11d1-b245-5ffdce74fad2'
const keyId = '7d444841-9dc0-11d1-b245-5ffdce74fad2'

// The authenticated signature, or null.
function authenticate (header, body) {
  const match = /^(\d{1,10})\.([0-9a-f]{64})$/.exec(header ?? '')
  if (match === null || !Buffer.isBuffer(body)) return null
  const given = Buffer.from(match[2], 'hex')
  const expected = crypto.createHmac('sha256', signingKey).update(match[1] + '.').update(body).digest()
  if (!crypto.timingSafeEqual(given, expected)) return null
  return { signature: given, signedAt: new Date(Number(match[1]) * 1000) }
}

// The row of an authentic body, in the order of the columns below.
function row ({ signature, signedAt }, body) {
  const text = body.toString('utf8')
  const event = JSON.parse(text)
  const type = event.webhook_type ?? event.webook_type
  return [
    event.id, event.webhook_event, endpointId, event.id, type === 'payment_session' ? 'payment' : type,
    event.state?.toLowerCase(), event.live, 'v2', text, body, crypto.createHash('sha256').update(body).digest(),
    signature, signedAt, keyId, new Date()
  ]
}

// $9 is text, so that a driver that knows jsonb does not encode it again.
const insert = (table) => `INSERT INTO ${table} (event_id, event_type, endpoint_id, resource_id, resource_type,
  state, live, api_version, payload, body, body_sha256, signature, signed_at, key_id, received_at)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::text::jsonb, $10, $11, $12, $13, $14, $15) ON CONFLICT DO NOTHING`

module.exports = { authenticate, row, insert, POOL_SIZE: 20 }
