-- deliver.lua: a wrk script that delivers signed v2 events of a given size.
--
-- Usage: wrk -c CONNECTIONS -t THREADS -d TIME -s deliver.lua URL -- KEY [SIZE] [MODE] [SECONDS] [SEED]
--
-- MODE "unique" (the default) makes a new event for each request, with a
-- random UUID as its id, as Banked's are.  MODE "same" sends one event again
-- and again, and a number as MODE sends that many in turn: byte for byte the
-- same body, signed anew each time (at a random second of the last hour).  A
-- SEED names the event or events.
--
-- With SECONDS, deliveries end after that time; TIME must be longer.  Then
-- every delivery that was sent is answered when wrk ends, and the number of
-- answers is exact.
--
-- A request is a buffer made once, in which id, time and signature are
-- written over: the machine's time is wanted for the receiver.
local ffi = require("ffi")
ffi.cdef [[
struct timespec { long seconds; long nanoseconds; };
int clock_gettime(int clock, struct timespec *time);
typedef struct hmac_ctx_st HMAC_CTX;
const void *EVP_sha256(void);
HMAC_CTX *HMAC_CTX_new(void);
int HMAC_Init_ex(HMAC_CTX *context, const void *key, int length, const void *digest, void *engine);
int HMAC_Update(HMAC_CTX *context, const char *data, size_t length);
int HMAC_Final(HMAC_CTX *context, unsigned char *digest, unsigned int *length);
]]
local crypto = ffi.load("libcrypto.so.3")

local ID_LENGTH = 36
local TIMESTAMP_LENGTH = 10
local template = '{"id":"%s","amount":400,"amount_formatted":"$4.00","created_at":"2019-10-31 16:45:34 UTC",' ..
   '"currency":"GBP","end_to_end_id":null,"live":true,"line_items":[{"amount":1,"currency":"GBP","description":null,' ..
   '"name":"Candle","quantity":1}],"payee":{"account_number":"12345678","name":"Gerard Wiley","sort_code":"123456"},' ..
   '"reference":"Illuminate","state":"sent","url":"https://banked.me/pay/a6941fd1","email_receipt":true,' ..
   '"webhook_event":"payment_sent","webhook_type":"payment_session","padding":"%s"}'

local thread_number = 0

function setup(thread)
   thread:set("thread_number", thread_number)
   thread_number = thread_number + 1
end

local buffer, buffer_length, id_at, timestamp_at, digest_at, body_at, body_length
local ids, run, count, seconds, ends_at
local context = crypto.HMAC_CTX_new()
local digest = ffi.new("unsigned char[32]")
local digest_length = ffi.new("unsigned int[1]")
local time = ffi.new("struct timespec")

local hex = {}
for byte = 0, 255 do
   hex[byte] = string.format("%02x", byte)
end

local function now()
   ffi.C.clock_gettime(0, time)
   return tonumber(time.seconds), tonumber(time.nanoseconds)
end

local function random_word()
   return math.random(0, 0xffffffff)
end

-- A UUID of version 4: random but for its end, which makes it unique.
local function make_id(tail, number)
   return string.format("%08x-%04x-4%03x-a%03x-%04x%08x", random_word(), math.random(0, 0xffff),
      math.random(0, 0xfff), math.random(0, 0xfff), tail, number)
end

local function random_seed()
   local file = assert(io.open("/dev/urandom", "rb"))
   local bytes = file:read(8)
   file:close()
   local seed = 0
   for i = 1, 6 do
      seed = seed * 256 + bytes:byte(i)
   end
   return seed, bytes:byte(7) * 256 + bytes:byte(8)
end

-- Letters that hardly compress: the same ones in each event.
local function make_padding(length)
   local letters = {}
   math.randomseed(1)
   for i = 1, length do
      letters[i] = string.char(97 + math.random(0, 25))
   end
   return table.concat(letters)
end

local function make_buffer(size)
   local empty_id = string.rep("0", ID_LENGTH)
   local padding = size - #string.format(template, empty_id, "")
   local body = string.format(template, empty_id, make_padding(padding))
   local head = "POST " .. wrk.path .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"] ..
      "\r\nContent-Type: application/json\r\nContent-Length: " .. #body .. "\r\nBanked-Signature: "
   local tail = "\r\n\r\n"

   timestamp_at = #head
   digest_at = timestamp_at + TIMESTAMP_LENGTH + 1
   body_at = digest_at + 64 + #tail
   body_length = #body
   id_at = body_at + #'{"id":"'
   local text = head .. string.rep("0", TIMESTAMP_LENGTH) .. "." .. string.rep("0", 64) .. tail .. body
   buffer_length = #text
   buffer = ffi.new("char[?]", buffer_length + 1, text)
end

function init(args)
   local key = args[1]
   local size = tonumber(args[2] or 800)
   local mode = args[3] or "unique"
   local distinct = mode == "same" and 1 or tonumber(mode)

   seconds = tonumber(args[4])
   count = 0
   assert(crypto.HMAC_Init_ex(context, key, #key, crypto.EVP_sha256(), nil) == 1)
   make_buffer(size)

   -- The same events in every thread: the seed's.
   if distinct then
      local seed = tonumber(args[5] or 1)
      ids = {}
      math.randomseed(seed)
      for i = 1, distinct do
         ids[i] = make_id(seed % 0x10000, i)
      end
   end
   local seed, tail = random_seed()
   math.randomseed(seed + thread_number)
   run = tail
end

function request()
   local second, nanosecond = now()

   -- Nothing is sent for an empty request, and so the connection rests.
   if seconds then
      local at = second + nanosecond / 1e9
      ends_at = ends_at or at + seconds
      if at >= ends_at then
         return ""
      end
   end

   count = count + 1
   if ids then
      ffi.copy(buffer + id_at, ids[(count - 1) % #ids + 1], ID_LENGTH)
      second = second - math.random(0, 3599)
   else
      ffi.copy(buffer + id_at, make_id(run, count), ID_LENGTH)
   end
   ffi.copy(buffer + timestamp_at, tostring(second), TIMESTAMP_LENGTH)

   crypto.HMAC_Init_ex(context, nil, 0, nil, nil)
   crypto.HMAC_Update(context, buffer + timestamp_at, TIMESTAMP_LENGTH + 1)
   crypto.HMAC_Update(context, buffer + body_at, body_length)
   crypto.HMAC_Final(context, digest, digest_length)
   for i = 0, 31 do
      ffi.copy(buffer + digest_at + 2 * i, hex[digest[i]], 2)
   end
   return ffi.string(buffer, buffer_length)
end

function done(summary, latency, requests)
   local errors = summary.errors
   io.write(string.format("RESULT answers=%d failed=%d p50_us=%d p99_us=%d\n",
      summary.requests, errors.status + errors.connect + errors.read + errors.write + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
