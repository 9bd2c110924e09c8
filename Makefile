# banked_webhooks: builds the extension's library and the gateway program.
#
#   make                     build, against PostgreSQL 15 (PG_CONFIG=... for a particular one)
#   make install             install both; DESTDIR=... to stage
#   make bench               speed and memory beside other receivers; BENCH_SECONDS=4, ... (see bench/run)
#   make bench-handlers      jobs a second beside graphile-worker; BENCH_JOBS=10000, ... (see bench/handlers/run)
#   make demo, demo-stop     a private server with everything in it, shown at work
#   make fuzz                feeds everything that reads what others send; FUZZ_SECONDS=60
#   make test                every test, on private servers; TESTS="..." for some of them
#   make soak                load and faults, judged; SOAK_SECONDS=300, SOAK_CYCLES, FAULTS="..." for some of them
#
# demo and test install missing packages, build in a copy of their own and
# touch no installed server.  They must work where PGXS is not there yet, and
# so they stand before it is included and run everything by sub-make.

.DEFAULT_GOAL := all

.PHONY: bench bench-handlers demo demo-stop fuzz soak test test-unit test-regress test-isolation test-tap

bench:
	@bench/run

bench-handlers:
	@bench/handlers/run

demo:
	@scripts/demo

demo-stop:
	@scripts/demo stop

soak:
	@scripts/soak $(FAULTS)

fuzz:
	@scripts/fuzz $(TARGETS)

test:
	@scripts/test $(TESTS)

test-unit test-regress test-isolation test-tap:
	@scripts/test $(@:test-%=%)

STANDALONE_GOALS = bench bench-handlers demo demo-stop fuzz soak test test-unit test-regress test-isolation test-tap

ifneq ($(filter-out $(STANDALONE_GOALS),$(or $(MAKECMDGOALS),all)),)

# ---------------------------------------------------------------------------
# What is built
# ---------------------------------------------------------------------------

EXTENSION = banked_webhooks
DATA = $(wildcard sql/banked_webhooks--*.sql)
MODULE_big = banked_webhooks
OBJS = \
	src/banked_webhooks.o src/counters.o src/frame.o src/functions.o src/launcher.o \
	src/private_file.o src/secret_functions.o src/secrets.o src/settings.o src/signature.o src/stats.o src/watch.o \
	src/api/api_call.o src/api/http_client.o \
	src/handlers/control.o src/handlers/dispatcher.o src/handlers/handler_cache.o src/handlers/job_queue.o \
	src/handlers/pool.o src/handlers/runner.o src/handlers/scheduler.o src/handlers/worker.o \
	src/receiver/batch.o src/receiver/batch_size.o src/receiver/delivery.o src/receiver/direct.o src/receiver/endpoint_cache.o \
	src/receiver/event_rows.o src/receiver/event_store.o src/receiver/examine.o src/receiver/failure.o src/receiver/gateway_link.o src/receiver/gateway_process.o \
	src/receiver/listeners.o src/receiver/notify.o src/receiver/payload.o src/receiver/payload_scan.o src/receiver/quarantine.o src/receiver/receiver.o \
	src/receiver/rejection_log.o src/receiver/service.o src/receiver/statements.o src/receiver/stored_rows.o src/receiver/table_cache.o src/receiver/tls_files.o src/receiver/transaction.o src/receiver/unstoppable.o

# The gateway is a program of its own: nothing of the server is linked into
# it, and its objects are not the module's (which are position-independent
# code for a library).
GATEWAY = banked_webhooks_gateway
GATEWAY_OBJS = build/frame.o build/signature.o $(addprefix build/gateway/,\
	connections.o deliveries.o events.o gateway.o handler.o handshakes.o http.o linger.o link.o listeners.o log.o \
	main.o paths.o rejections.o request_guard.o responses.o sandbox.o tls.o)

UNIT_TESTS = $(patsubst %.c,build/%,$(wildcard test/unit/*_test.c))
UNIT_OBJS = build/frame.o build/signature.o build/receiver/batch_size.o build/receiver/payload_scan.o $(patsubst %,build/gateway/%.o,connections deliveries paths rejections request_guard sandbox)

EXTRA_CLEAN = build $(GATEWAY)

# ---------------------------------------------------------------------------
# What it is built with
# ---------------------------------------------------------------------------

PG_MAJOR = 15

define missing_packages
$(1).
On Debian 12, as root:
    apt-get install gcc libc6-dev libcurl4-openssl-dev pkg-config postgresql-$(PG_MAJOR) postgresql-server-dev-$(PG_MAJOR) libssl-dev libmicrohttpd-dev libgnutls28-dev libseccomp-dev
("make demo" and "make test" install what they need by themselves)
endef

# The pg_config in PATH, unless it belongs to another version.
PG_CONFIG ?= $(firstword $(foreach candidate,\
	pg_config /usr/lib/postgresql/$(PG_MAJOR)/bin/pg_config /usr/pgsql-$(PG_MAJOR)/bin/pg_config,\
	$(if $(filter $(PG_MAJOR)%,$(word 2,$(shell $(candidate) --version 2>/dev/null))),$(candidate))))
PG_CONFIG := $(PG_CONFIG)
ifeq ($(PG_CONFIG),)
$(error $(call missing_packages,no pg_config of PostgreSQL $(PG_MAJOR) is there (PG_CONFIG=... to name one)))
endif

PGXS := $(shell $(PG_CONFIG) --pgxs 2>/dev/null)
ifeq ($(wildcard $(PGXS)),)
$(error $(call missing_packages,the files to build extensions with are not there ($(PG_CONFIG) --pgxs: $(or $(PGXS),no answer))))
endif

PKG_CONFIG ?= pkg-config
MODULE_PACKAGES = libcrypto
GATEWAY_PACKAGES = libmicrohttpd gnutls libcrypto libseccomp

# libcurl may be somewhere else (scripts/common.sh, provide_libcurl).
CURL_CFLAGS ?= $(shell $(PKG_CONFIG) --cflags libcurl)
CURL_LIBS ?= $(shell $(PKG_CONFIG) --libs libcurl)
CURL_PACKAGE = $(if $(filter environment command,$(origin CURL_LIBS)),,libcurl)

ifneq ($(filter-out clean distclean maintainer-clean uninstall,$(or $(MAKECMDGOALS),all)),)
absent := $(foreach package,$(sort $(MODULE_PACKAGES) $(GATEWAY_PACKAGES) $(CURL_PACKAGE)),\
	$(if $(shell $(PKG_CONFIG) --exists $(package) 2>/dev/null && echo yes),,$(package)))
ifneq ($(strip $(absent)),)
$(error $(call missing_packages,$(PKG_CONFIG) does not find: $(strip $(absent))))
endif
endif

PG_CPPFLAGS = -Isrc $(shell $(PKG_CONFIG) --cflags $(MODULE_PACKAGES)) $(CURL_CFLAGS)
SHLIB_LINK = $(shell $(PKG_CONFIG) --libs $(MODULE_PACKAGES)) $(CURL_LIBS)

# No bitcode: nothing here is worth inlining into a query, and it would be a second compile of everything.
override with_llvm := no

include $(PGXS)

# ---------------------------------------------------------------------------
# How
# ---------------------------------------------------------------------------

HEADERS_OF_SRC = $(wildcard src/*.h src/*/*.h)

$(OBJS) $(GATEWAY_OBJS): Makefile $(HEADERS_OF_SRC)

# The distribution's flags, without what is for libraries or for the server.
GATEWAY_CFLAGS = $(filter-out $(CFLAGS_SL),$(CFLAGS)) -fPIE
GATEWAY_CPPFLAGS = -Isrc $(filter -D% -W%,$(CPPFLAGS)) $(shell $(PKG_CONFIG) --cflags $(GATEWAY_PACKAGES))
GATEWAY_LDFLAGS = $(filter -Wl%,$(LDFLAGS)) -pie
GATEWAY_LIBS = $(shell $(PKG_CONFIG) --libs $(GATEWAY_PACKAGES))

all: $(GATEWAY)

$(GATEWAY): $(GATEWAY_OBJS)
	$(CC) $(GATEWAY_CFLAGS) $^ $(GATEWAY_LDFLAGS) $(GATEWAY_LIBS) -o $@

build/%.o: src/%.c
	@$(MKDIR_P) $(@D)
	$(CC) $(GATEWAY_CFLAGS) $(GATEWAY_CPPFLAGS) -c $< -o $@

build/test/unit/%: test/unit/%.c $(UNIT_OBJS) $(HEADERS_OF_SRC) $(wildcard test/unit/*.h)
	@$(MKDIR_P) $(@D)
	$(CC) $(GATEWAY_CFLAGS) $(GATEWAY_CPPFLAGS) $< $(UNIT_OBJS) $(GATEWAY_LDFLAGS) $(GATEWAY_LIBS) -o $@

.PHONY: show-pg_config unit-tests install-gateway uninstall-gateway

unit-tests: $(UNIT_TESTS)

show-pg_config:
	@echo '$(PG_CONFIG)'

install: install-gateway
install-gateway: $(GATEWAY) installdirs
	$(INSTALL_PROGRAM) $(GATEWAY) '$(DESTDIR)$(pkglibdir)/$(GATEWAY)'

uninstall: uninstall-gateway
uninstall-gateway:
	rm -f '$(DESTDIR)$(pkglibdir)/$(GATEWAY)'

endif
