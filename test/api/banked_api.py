#!/usr/bin/python3
"""banked_api.py
	Plays Banked's side for tests and demo: its management API over HTTPS, and deliveries.

	banked_api.py --cert FILE --key FILE [--api-key TEXT] [--secret-key TEXT]

It implements what Banked documents of webhooks and of OAuth, keeps webhooks in
memory, and refuses what Banked would refuse: wrong authorization, a
target_url that is not https, mandate and payment types in one webhook.  What
it is told over a second, plain port makes it misbehave, for the next request
or requests.  Both ports are free ones of the loopback address; the first line of its
output names them: "HTTPS PORT CONTROL PORT".

Control requests (JSON in, JSON out):
	GET  /requests        what came in, authorization and bodies included
	POST /reset           {}: forgets webhooks, tokens, misbehaviour and the list of requests
	POST /next            a list of misbehaviours, one for each of the next requests, null for none
	POST /settings        {"expires_in", "tell_id", "tell_events", "wrap", "secret_key"}
	GET  /webhooks        the webhooks, keys included
	POST /webhooks        replaces them
	POST /load            {"url"}: delivers events, signed with each webhook's key, until /load/stop
	POST /load/stop       {}: the count of answers by status, and by key

A misbehaviour is {"status", "body", "headers", "mode", "apply"}.  Modes: "garbage"
(no HTTP), "endless" (a body without end), "silent" (no answer), "close" (ends the connection),
"half" (ends it in the middle of the body), "echo" (an error that repeats the
request's secrets), "echo_header" (one that repeats its authorization as it came).  With "apply" the request is obeyed before.
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.RLock()
state = {}
load = {"thread": None, "stop": threading.Event(), "tally": {}, "by_key": {}}


def reset():
    with lock:
        state.update(webhooks={}, tokens={}, next=[], requests=[], settings={
            "expires_in": 7200, "tell_id": True, "tell_events": True, "wrap": None,
            "secret_key": options.secret_key})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def read_body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def answer(self, status, content, headers=None):
        body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class Api(Handler):
    """The API itself."""

    def handle_any(self):
        body = self.read_body()
        with lock:
            state["requests"].append({
                "method": self.command, "path": self.path, "body": body.decode("utf-8", "replace"),
                "authorization": self.headers.get("Authorization"), "type": self.headers.get("Content-Type")})
            misbehaviour = state["next"].pop(0) if state["next"] else None
        if misbehaviour:
            if misbehaviour.get("apply"):
                self.obey(body)
            self.misbehave(misbehaviour, body)
        else:
            self.answer(*self.obey(body))

    do_GET = do_POST = do_PATCH = do_DELETE = handle_any

    def misbehave(self, misbehaviour, body):
        mode = misbehaviour.get("mode")
        self.close_connection = True
        try:
            if mode == "garbage":
                self.wfile.write(b"\x00\x01 this is no HTTP \xff\xfe\r\n\r\n")
            elif mode == "endless":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n[")
                while True:
                    self.wfile.write(b"1," * 32768)
            elif mode == "silent":
                self.connection.settimeout(60)
                self.connection.recv(1)
            elif mode == "half":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n[")
            elif mode == "echo":
                authorization = (self.headers.get("Authorization") or "").split(" ")[-1]
                secret = base64.b64decode(authorization).decode() if authorization else ""
                key = (json.loads(body) if body else {}).get("signature_key", "")
                self.answer(400, {"error": "bad " + secret.split(":")[-1], "error_description": "key " + (key or secret)})
            elif mode == "echo_header":
                self.answer(400, {"error": "bad header", "error_description": "not " + self.headers["Authorization"]})
            elif mode != "close":
                content = misbehaviour.get("body")
                self.answer(misbehaviour["status"],
                            content.encode() if isinstance(content, str) else content, misbehaviour.get("headers"))
        except OSError:
            pass

    def obey(self, body):
        """Returns status and content."""
        if self.path == "/oauth/token":
            return self.give_token(body)
        match = re.fullmatch(r"/(v2|v3)/webhooks(?:/([^/?]+))?", self.path)
        if not match:
            return 404, {"error": "not_found", "error_description": "no such path"}
        if not self.is_authorized():
            return 401, {"error": "invalid_client", "error_description": "IP address not in range"}
        with lock:
            return self.manage(match.group(2), body)

    def basic(self):
        return "Basic " + base64.b64encode(
            f'{options.api_key}:{state["settings"]["secret_key"]}'.encode()).decode()

    def is_authorized(self):
        authorization = self.headers.get("Authorization") or ""
        if authorization.startswith("Bearer "):
            return state["tokens"].get(authorization[7:], 0) > time.time()
        return authorization == self.basic()

    def give_token(self, body):
        form = urllib.parse.parse_qs(body.decode())
        if self.command != "POST" or self.headers.get("Authorization") != self.basic():
            return 401, {"error": "invalid_client", "error_description": "wrong client"}
        if form.get("grant_type") != ["client_credentials"] or \
                self.headers.get("Content-Type") != "application/x-www-form-urlencoded":
            return 400, {"error": "unsupported_grant_type"}
        token = "token-" + uuid.uuid4().hex
        with lock:
            life = state["settings"]["expires_in"]
            state["tokens"][token] = time.time() + life
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": life,
                     "scope": form.get("scope", [""])[0]}

    def manage(self, webhook_id, body):
        webhooks = state["webhooks"]
        if webhook_id is None and self.command == "GET":
            listed = [self.shown(webhook) for webhook in webhooks.values()]
            wrap = state["settings"]["wrap"]
            return 200, {wrap: listed} if wrap else listed
        if webhook_id is None and self.command == "POST":
            return self.change({"id": str(uuid.uuid4())}, body, ("target_url", "signature_key", "events"))
        if webhook_id not in webhooks:
            return 404, {"error": "not_found", "error_description": "no such webhook"}
        if self.command == "PATCH":
            return self.change(dict(webhooks[webhook_id]), body, ())
        if self.command == "DELETE":
            del webhooks[webhook_id]
            return 204, None
        return 405, {"error": "method_not_allowed"}

    def change(self, webhook, body, needed):
        try:
            fields = json.loads(body)
        except ValueError:
            return 400, {"error": "bad_request", "error_description": "the body is not JSON"}
        problem = self.problem(fields, needed)
        if problem:
            return 422, {"error": "invalid_request", "error_description": problem}
        webhook.update(fields)
        state["webhooks"][webhook["id"]] = webhook
        return 201 if needed else 200, self.shown(webhook) if state["settings"]["tell_id"] else {"status": "ok"}

    @staticmethod
    def problem(fields, needed):
        if missing := [name for name in needed if not fields.get(name)]:
            return "missing: " + ", ".join(missing)
        if unknown := set(fields) - {"target_url", "signature_key", "events"}:
            return "unknown: " + ", ".join(sorted(unknown))
        if not str(fields.get("target_url", "https://")).startswith("https://"):
            return "target_url must be https"
        if len({event.startswith("mandate_") for event in fields.get("events", [])}) > 1:
            return "mandate and payment events need separate webhooks"
        return None

    @staticmethod
    def shown(webhook):
        hidden = set() if state["settings"]["tell_events"] else {"events"}
        return {name: value for name, value in webhook.items() if name not in hidden}


class Control(Handler):
    def do_GET(self):
        with lock:
            self.answer(200, {"/requests": lambda: state["requests"],
                              "/webhooks": lambda: list(state["webhooks"].values())}[self.path]())

    def do_POST(self):
        content = json.loads(self.read_body() or b"{}")
        with lock:
            if self.path == "/reset":
                reset()
            elif self.path == "/next":
                state["next"] = content
                state["requests"] = []
            elif self.path == "/settings":
                state["settings"].update(content)
            elif self.path == "/webhooks":
                state["webhooks"] = {webhook["id"]: webhook for webhook in content}
        if self.path == "/load":
            start_load(content["url"])
        elif self.path == "/load/stop":
            content = stop_load()
        self.answer(200, content)


def start_load(url):
    load["stop"].clear()
    load["tally"], load["by_key"] = {}, {}
    load["thread"] = threading.Thread(target=deliver, args=(urllib.parse.urlsplit(url),), daemon=True)
    load["thread"].start()


def stop_load():
    load["stop"].set()
    load["thread"].join()
    return {"statuses": load["tally"], "keys": load["by_key"]}


def deliver(url):
    """Delivers as Banked does: the key that it was told last, for the path of the webhook."""
    connection = http.client.HTTPConnection(url.hostname, url.port, timeout=60)
    number = 0
    while not load["stop"].is_set():
        with lock:
            targets = [(urllib.parse.urlsplit(w["target_url"]).path, w["signature_key"], w["events"][0])
                       for w in state["webhooks"].values()]
        for path, key, event in targets:
            number += 1
            body = json.dumps({"id": f"load-{os.getpid()}-{number}", "webhook_event": event, "live": True, "amount": number})
            at = str(int(time.time()))
            signature = at + "." + hmac.new(key.encode(), f"{at}.{body}".encode(), hashlib.sha256).hexdigest()
            try:
                connection.request("POST", path, body, {"banked-signature": signature})
                response = connection.getresponse()
                response.read()
                status = str(response.status)
            except (OSError, http.client.HTTPException):
                connection.close()
                status = "none"
            load["tally"][status] = load["tally"].get(status, 0) + 1
            if status == "200":
                name = hashlib.sha256(key.encode()).hexdigest()[:8]
                load["by_key"][name] = load["by_key"].get(name, 0) + 1
        if not targets:
            time.sleep(0.01)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass

    def get_request(self):
        connection, address = super().get_request()
        connection.settimeout(30)
        return connection, address


class TlsServer(Server):
    """The handshake is made by the connection's own thread."""

    def finish_request(self, request, client_address):
        with self.context.wrap_socket(request, server_side=True) as connection:
            super().finish_request(connection, client_address)


parser = argparse.ArgumentParser()
parser.add_argument("--cert", required=True)
parser.add_argument("--key", required=True)
parser.add_argument("--api-key", default="api-key-of-tests")
parser.add_argument("--secret-key", default="secret-key-of-tests")
options = parser.parse_args()
reset()

api = TlsServer(("127.0.0.1", 0), Api)
api.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
api.context.load_cert_chain(options.cert, options.key)
control = Server(("127.0.0.1", 0), Control)
print(f"HTTPS {api.server_port} CONTROL {control.server_port}", flush=True)
threading.Thread(target=api.serve_forever, daemon=True).start()
threading.Thread(target=control.serve_forever, daemon=True).start()

# Ends with whoever started it.
while sys.stdin.buffer.read(4096):
    pass
