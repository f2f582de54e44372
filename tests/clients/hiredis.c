/* What hiredis must be able to do: the C library under many others. Debian's version speaks RESP2 only. */

#include <hiredis/hiredis.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

static jmp_buf item_failed;
static char reason[512];
static int failures;

static void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(reason, sizeof reason, format, args);
    va_end(args);
    longjmp(item_failed, 1);
}

#define CHECK(condition) \
    do { \
        if (!(condition)) fail("line %d: %s", __LINE__, #condition); \
    } while (0)

static void line(const char *result, const char *item, const char *why) {
    printf("%s\thiredis %d.%d.%d\t%s\t%s\n", result, HIREDIS_MAJOR, HIREDIS_MINOR, HIREDIS_PATCH, item, why);
    fflush(stdout);
}

/* Connections are left to the end of the process, as is whatever an item that failed has taken. */
static redisContext *connect_to(const char *port) {
    struct timeval deadline = {20, 0};
    redisContext *client = redisConnectWithTimeout("127.0.0.1", atoi(getenv(port)), deadline);
    CHECK(client != NULL);
    if (client->err) fail("%s", client->errstr);
    CHECK(redisSetTimeout(client, deadline) == REDIS_OK);
    return client;
}

static redisReply *replied(redisContext *client, redisReply *reply) {
    if (reply == NULL) fail("%s", client->errstr);
    return reply;
}

#define CALL(client, ...) replied(client, redisCommand(client, __VA_ARGS__))

static redisReply *next(redisContext *client) {
    void *reply = NULL;
    if (redisGetReply(client, &reply) != REDIS_OK) fail("%s", client->errstr);
    return reply;
}

static int is_text(redisReply *reply, const char *text) {
    return (reply->type == REDIS_REPLY_STRING || reply->type == REDIS_REPLY_STATUS) && !strcmp(reply->str, text);
}

static int is_number(redisReply *reply, long long number) {
    return reply->type == REDIS_REPLY_INTEGER && reply->integer == number;
}

static int is_error(redisReply *reply, const char *code) {
    return reply->type == REDIS_REPLY_ERROR && !strncmp(reply->str, code, strlen(code));
}

static int is_list(redisReply *reply, size_t elements) {
    return reply->type == REDIS_REPLY_ARRAY && reply->elements == elements;
}

/* Sends it a moment later from another process, while the caller waits. */
static void soon(const char *command) {
    if (fork() == 0) {
        usleep(200000);
        redisContext *client = redisConnect("127.0.0.1", atoi(getenv("OTHER_PORT")));
        redisCommand(client, command);
        _exit(0);
    }
}

static void connects(void) {
    redisContext *client = connect_to("PORT");
    CHECK(is_text(CALL(client, "PING"), "PONG"));
    CHECK(is_text(CALL(client, "SET hi:a 1"), "OK"));
    CHECK(is_text(CALL(client, "GET hi:a"), "1"));
    CHECK(CALL(client, "GET hi:none")->type == REDIS_REPLY_NIL);
    CHECK(is_text(CALL(client, "CLIENT SETNAME me"), "OK"));
    CHECK(is_text(CALL(client, "CLIENT GETNAME"), "me"));
}

static void resp2(void) {
    redisContext *client = connect_to("PORT");
    CALL(client, "DEL hi:h hi:z hi:s hi:l");
    CHECK(is_number(CALL(client, "HSET hi:h f v g w"), 2));
    CHECK(is_list(CALL(client, "HGETALL hi:h"), 4));
    CHECK(is_number(CALL(client, "ZADD hi:z 1.5 m"), 1));
    CHECK(is_text(CALL(client, "ZSCORE hi:z m"), "1.5"));
    CHECK(is_number(CALL(client, "SADD hi:s a b"), 2));
    CHECK(is_list(CALL(client, "SMEMBERS hi:s"), 2));
    CHECK(is_number(CALL(client, "RPUSH hi:l a b c"), 3));
    redisReply *list = CALL(client, "LRANGE hi:l 0 -1");
    CHECK(is_list(list, 3) && is_text(list->element[2], "c"));
    CHECK(is_error(CALL(client, "INCR hi:l"), "WRONGTYPE"));
    CHECK(is_error(CALL(client, "NOSUCH hi:l"), "ERR unknown command"));
}

static void auth(void) {
    redisContext *client = connect_to("PASSWORD_PORT");
    CHECK(is_error(CALL(client, "GET hi:a"), "NOAUTH"));
    CHECK(is_error(CALL(client, "AUTH no"), "WRONGPASS"));
    CHECK(is_text(CALL(client, "AUTH %s", getenv("PASSWORD")), "OK"));
    CHECK(is_text(CALL(client, "AUTH default %s", getenv("PASSWORD")), "OK"));
    CHECK(CALL(client, "GET hi:none")->type == REDIS_REPLY_NIL);
}

static void select_database(void) {
    redisContext *client = connect_to("PORT");
    CALL(client, "SET hi:a 1");
    CHECK(is_text(CALL(client, "SELECT 3"), "OK"));
    CALL(client, "DEL hi:a");
    CHECK(CALL(client, "GET hi:a")->type == REDIS_REPLY_NIL);
    CHECK(is_text(CALL(client, "SELECT 0"), "OK"));
    CHECK(is_text(CALL(client, "GET hi:a"), "1"));
    CHECK(is_error(CALL(client, "SELECT 999999"), "ERR DB index is out of range"));
}

static void pipeline(void) {
    redisContext *client = connect_to("PORT");
    for (int n = 0; n < 5000; n++) redisAppendCommand(client, "SET hi:%d %d", n, n);
    for (int n = 0; n < 5000; n++) redisAppendCommand(client, "GET hi:%d", n);
    for (int n = 0; n < 5000; n++) CHECK(is_text(next(client), "OK"));
    for (int n = 0; n < 5000; n++) {
        char wanted[16];
        snprintf(wanted, sizeof wanted, "%d", n);
        CHECK(is_text(next(client), wanted));
    }
}

static void split(void) {
    redisContext *client = connect_to("PORT");
    CHECK(is_text(CALL(client, "MSET hi:m1 1 hi:m2 2 hi:m3 3 hi:m4 4 hi:m5 5 hi:m6 6"), "OK"));
    redisReply *values = CALL(client, "MGET hi:m6 hi:m5 hi:m4 hi:m3 hi:m2 hi:m1 hi:none");
    CHECK(is_list(values, 7) && is_text(values->element[0], "6") && is_text(values->element[5], "1"));
    CHECK(values->element[6]->type == REDIS_REPLY_NIL);
    CHECK(is_number(CALL(client, "DEL hi:m1 hi:m2 hi:m3 hi:m4 hi:m5 hi:m6"), 6));
}

static void large(void) {
    size_t size = 64 << 20;
    char *value = malloc(size);
    CHECK(value != NULL);
    for (size_t n = 0; n < size; n++) value[n] = (char)(n * 7 + n / 256);
    redisContext *client = connect_to("PORT");
    CHECK(is_text(CALL(client, "SET hi:large %b", value, size), "OK"));
    redisReply *reply = CALL(client, "GET hi:large");
    CHECK(reply->type == REDIS_REPLY_STRING && reply->len == size && !memcmp(reply->str, value, size));
    freeReplyObject(reply);
    free(value);
    CHECK(is_number(CALL(client, "DEL hi:large"), 1));
}

static void binary(void) {
    char every[256];
    for (int n = 0; n < 256; n++) every[n] = (char)n;
    redisContext *client = connect_to("PORT");
    CHECK(is_text(CALL(client, "SET %b %b", every, sizeof every, every, sizeof every), "OK"));
    redisReply *values = CALL(client, "MGET %b %b %b", every, sizeof every, "\r\n", (size_t)2, "", (size_t)0);
    CHECK(is_list(values, 3) && values->element[0]->len == sizeof every);
    CHECK(!memcmp(values->element[0]->str, every, sizeof every));
    CHECK(is_number(CALL(client, "DEL %b", every, sizeof every), 1));
}

static void scripts(void) {
    redisContext *client = connect_to("PORT");
    redisReply *sha = CALL(client, "SCRIPT LOAD %s", "return redis.call('INCR', KEYS[1])");
    CHECK(sha->type == REDIS_REPLY_STRING && sha->len == 40);
    for (int n = 0; n < 16; n++) {
        CALL(client, "DEL hi:script%d", n);
        CHECK(is_number(CALL(client, "EVALSHA %s 1 hi:script%d", sha->str, n), 1));
    }
    CHECK(is_text(CALL(client, "SCRIPT FLUSH"), "OK"));
    CHECK(is_error(CALL(client, "EVALSHA %s 1 hi:script1", sha->str), "NOSCRIPT"));
    CHECK(is_number(CALL(client, "EVAL %s 1 hi:script1", "return redis.call('INCR', KEYS[1])"), 2));
    CHECK(is_number(CALL(client, "EVALSHA %s 1 hi:script1", sha->str), 3));
}

static void multi(void) {
    redisContext *client = connect_to("PORT");
    CHECK(is_text(CALL(client, "MULTI"), "OK"));
    CHECK(is_text(CALL(client, "SET {hi}:t a"), "QUEUED"));
    CHECK(is_text(CALL(client, "INCR {hi}:t"), "QUEUED"));
    CHECK(is_text(CALL(client, "GET {hi}:t"), "QUEUED"));
    redisReply *replies = CALL(client, "EXEC");
    CHECK(is_list(replies, 3) && is_text(replies->element[0], "OK"));
    CHECK(is_error(replies->element[1], "ERR value is not an integer") && is_text(replies->element[2], "a"));
    CALL(client, "MULTI");
    CHECK(is_error(CALL(client, "GET"), "ERR wrong number of arguments for 'get' command"));
    CHECK(is_error(CALL(client, "EXEC"), "EXECABORT"));
}

static void watch(void) {
    redisContext *client = connect_to("PORT");
    for (int touched = 0; touched < 2; touched++) {
        CALL(client, "SET {hi}:w 1");
        CHECK(is_text(CALL(client, "WATCH {hi}:w"), "OK"));
        if (touched) CALL(connect_to("OTHER_PORT"), "SET {hi}:w 5");
        CALL(client, "MULTI");
        CALL(client, "INCR {hi}:w");
        redisReply *replies = CALL(client, "EXEC");
        CHECK(touched ? replies->type == REDIS_REPLY_NIL : is_list(replies, 1));
    }
}

static void blpop(void) {
    redisContext *client = connect_to("PORT");
    CALL(client, "DEL {hi}:q {hi}:r");
    CHECK(CALL(client, "BLPOP {hi}:q {hi}:r 0.3")->type == REDIS_REPLY_NIL);
    soon("RPUSH {hi}:r x");
    redisReply *popped = CALL(client, "BLPOP {hi}:q {hi}:r 10");
    CHECK(is_list(popped, 2) && is_text(popped->element[0], "{hi}:r") && is_text(popped->element[1], "x"));
}

static void subscribe(void) {
    redisContext *client = connect_to("PORT");
    redisAppendCommand(client, "SUBSCRIBE hi:c1 hi:c2");
    redisAppendCommand(client, "PSUBSCRIBE hi:p*");
    for (long long n = 1; n <= 3; n++) {
        redisReply *confirmed = next(client);
        CHECK(is_list(confirmed, 3) && is_number(confirmed->element[2], n));
    }
    CHECK(is_error(CALL(client, "GET hi:a"), "ERR Can't execute 'get'"));
    const char *ports[] = {"PORT", "OTHER_PORT"};
    for (int n = 0; n < 2; n++) {
        redisContext *publisher = connect_to(ports[n]);
        CALL(publisher, "PUBLISH hi:c1 hello");
        redisReply *message = next(client);
        CHECK(is_list(message, 3) && is_text(message->element[0], "message"));
        CHECK(is_text(message->element[1], "hi:c1") && is_text(message->element[2], "hello"));
        CALL(publisher, "PUBLISH hi:pat hi");
        message = next(client);
        CHECK(is_list(message, 4) && is_text(message->element[0], "pmessage"));
        CHECK(is_text(message->element[1], "hi:p*") && is_text(message->element[3], "hi"));
    }
    redisReply *pong = CALL(client, "PING");
    CHECK(is_list(pong, 2) && is_text(pong->element[0], "pong"));
    redisAppendCommand(client, "UNSUBSCRIBE");
    redisAppendCommand(client, "PUNSUBSCRIBE");
    for (long long n = 2; n >= 0; n--) CHECK(is_number(next(client)->element[2], n));
    CHECK(CALL(client, "GET hi:none")->type == REDIS_REPLY_NIL);
}

static void xread(void) {
    redisContext *client = connect_to("PORT");
    CALL(client, "DEL {hi}:x");
    CHECK(CALL(client, "XREAD BLOCK 200 STREAMS {hi}:x $")->type == REDIS_REPLY_NIL);
    soon("XADD {hi}:x 1-1 f v");
    redisReply *streams = CALL(client, "XREAD BLOCK 10000 STREAMS {hi}:x $");
    CHECK(is_list(streams, 1) && is_list(streams->element[0], 2));
    redisReply *entries = streams->element[0]->element[1];
    CHECK(is_list(entries, 1) && is_text(entries->element[0]->element[0], "1-1"));
}

static void scan(void) {
    redisContext *client = connect_to("PORT");
    for (int n = 0; n < 1000; n++) redisAppendCommand(client, "SET hi:scan:%d 1", n);
    for (int n = 0; n < 1000; n++) CHECK(is_text(next(client), "OK"));
    char seen[1000] = {0}, cursor[32] = "0";
    int found = 0;
    do {
        redisReply *reply = CALL(client, "SCAN %s MATCH hi:scan:* COUNT 100", cursor);
        CHECK(is_list(reply, 2) && reply->element[0]->len < sizeof cursor);
        strcpy(cursor, reply->element[0]->str);
        for (size_t n = 0; n < reply->element[1]->elements; n++) {
            int which = atoi(reply->element[1]->element[n]->str + strlen("hi:scan:"));
            CHECK(which >= 0 && which < 1000);
            found += !seen[which];
            seen[which] = 1;
        }
    } while (strcmp(cursor, "0"));
    CHECK(found == 1000);
}

static void tracking(void) {
    redisContext *listener = connect_to("PORT"), *client = connect_to("PORT");
    redisReply *id = CALL(listener, "CLIENT ID");
    CHECK(id->type == REDIS_REPLY_INTEGER);
    CALL(listener, "SUBSCRIBE __redis__:invalidate");
    CHECK(is_text(CALL(client, "CLIENT TRACKING ON REDIRECT %lld", id->integer), "OK"));
    for (int n = 0; n < 2; n++) {
        CALL(client, "GET hi:cached%d", n);
        CALL(connect_to("OTHER_PORT"), "SET hi:cached%d 1", n);
        char key[16];
        snprintf(key, sizeof key, "hi:cached%d", n);
        redisReply *message = next(listener);
        CHECK(is_list(message, 3) && is_list(message->element[2], 1));
        CHECK(is_text(message->element[2]->element[0], key));
    }
}

static void crossslot(void) {
    redisContext *client = connect_to("CLUSTER_PORT");
    CHECK(is_error(CALL(client, "RENAME hi:0 hi:1"), "CROSSSLOT"));
    CHECK(is_error(CALL(client, "SINTER hi:0 hi:1"), "CROSSSLOT"));
}

/* A late item ends the program: `run` sees that the items behind it are missing. */
static void late(int number) {
    (void)number;
    static const char text[] = "hiredis: an item was not done in time\n";
    (void)!write(STDERR_FILENO, text, sizeof text - 1);
    _exit(1);
}

static void item(const char *name, void (*check)(void)) {
    alarm(30);
    if (setjmp(item_failed) == 0) {
        check();
        line("ok", name, "");
    } else {
        failures++;
        line("FAIL", name, reason);
    }
    alarm(0);
}

int main(void) {
    signal(SIGALRM, late);
    signal(SIGCHLD, SIG_IGN);
    item("connect", connects);
    item("RESP2", resp2);
    line("-", "RESP3", "this version does not speak it");
    item("AUTH", auth);
    item("SELECT", select_database);
    item("pipeline of 10,000", pipeline);
    item("MGET MSET DEL", split);
    item("64 MiB value", large);
    item("binary keys", binary);
    item("EVALSHA after SCRIPT FLUSH", scripts);
    item("MULTI", multi);
    item("WATCH", watch);
    item("BLPOP", blpop);
    item("SUBSCRIBE", subscribe);
    item("XREAD BLOCK", xread);
    item("SCAN", scan);
    item("tracking", tracking);
    item("CROSSSLOT", crossslot);
    line("-", "cluster client", "it has none");
    return failures > 0;
}
