// server.js: a fast receiver of webhooks to compare with, on Fastify and postgres.js.
//
// It answers 200 after the insert has been committed.  postgres.js prepares the statement, and sends
// queries ahead of answers on each of its connections.
'use strict'

const fastify = require('fastify')
const postgres = require('postgres')
const { authenticate, row, insert, POOL_SIZE } = require('../delivery')

// libpq's variables (PGHOST, ...) say where the database is.
const sql = postgres({ max: POOL_SIZE, connection: { application_name: 'fastify' } })
const statement = insert('fastify.events')

const app = fastify({ bodyLimit: 4 * 1024 * 1024 })
app.removeAllContentTypeParsers()
app.addContentTypeParser('*', { parseAs: 'buffer' }, (request, body, done) => done(null, body))

app.post('/webhooks/banked', async (request, reply) => {
  const authentic = authenticate(request.headers['banked-signature'], request.body)
  if (authentic === null) return reply.code(400).send()
  const values = row(authentic, request.body).map((value) => value ?? null)
  await sql.unsafe(statement, values, { prepare: true })
  return reply.code(200).send()
})

app.setErrorHandler((error, request, reply) => {
  console.error(error)
  reply.code(503).send()
})

app.listen({ port: Number(process.env.PORT), host: '127.0.0.1' }).then(() => console.log('ready'))
