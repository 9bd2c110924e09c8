// server.js: a plain receiver of webhooks to compare with, on Express and pg.
//
// It answers 200 after the insert has been committed.
'use strict'

const express = require('express')
const { Pool } = require('pg')
const { authenticate, row, insert, POOL_SIZE } = require('../delivery')

// libpq's variables (PGHOST, ...) say where the database is.
const pool = new Pool({ max: POOL_SIZE, idleTimeoutMillis: 0, application_name: 'express' })
const statement = insert('express.events')

const app = express()
app.disable('x-powered-by')
app.disable('etag')

app.post('/webhooks/banked', express.raw({ type: () => true, limit: '4mb' }), async (request, response) => {
  const authentic = authenticate(request.get('banked-signature'), request.body)
  if (authentic === null) return response.status(400).end()
  await pool.query(statement, row(authentic, request.body))
  response.status(200).end()
})

app.use((error, request, response, next) => {
  console.error(error)
  response.status(503).end()
})

app.listen(Number(process.env.PORT), '127.0.0.1', (error) => {
  if (error) throw error
  console.log('ready')
})
