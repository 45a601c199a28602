/* N WebSocket listeners in one epoll loop, for fanout.py.
 *
 * Usage: fanout_client PORT N ACK_S TOKEN SID
 * With a TOKEN each listener says hello, opens SID and acknowledges every ACK_S seconds (0: never);
 * with "-" it only listens. Prints "ready" when all are connected, then reads until standard input closes and prints
 * one JSON object: binary messages received, and their delay from the stamp (CLOCK_MONOTONIC ns,
 * little endian) that stands at byte 35 of the message, behind header, count and packet length. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { STAMP_AT = 35, HEAD = STAMP_AT + 8 };
#define SECOND 1000000000ull
#define MOST_DELAYS 4000000

typedef struct {
  int fd;
  uint64_t left;              /* bytes of the message that are still to come */
  unsigned char head[14 + HEAD]; /* frame header and the message up to its stamp */
  int have, frame_head;
  unsigned last_seq;
  uint64_t acked_at;
} listener;

static unsigned char buffer[1 << 18];
static float *delays;
static size_t delay_count;
static uint64_t messages;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void fail(const char *what) {
  perror(what);
  exit(1);
}

/* A masked text frame; the mask is zero, so the text stays as it is. */
static void say(int fd, const char *text) {
  unsigned char frame[4096];
  size_t size = strlen(text), at = 0;
  frame[at++] = 0x81;
  if (size < 126) {
    frame[at++] = 0x80 | size;
  } else {
    frame[at++] = 0x80 | 126;
    frame[at++] = size >> 8;
    frame[at++] = size & 255;
  }
  memset(frame + at, 0, 4);
  memcpy(frame + at + 4, text, size);
  if (write(fd, frame, at + 4 + size) < 0) fail("write");
}

static int dial(int port, const char *token, const char *sid) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, (void *)&to, sizeof to)) fail("connect");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  const char *request =
      "GET /v1/live HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
      "Sec-WebSocket-Protocol: notecast.v1\r\n\r\n";
  if (write(fd, request, strlen(request)) < 0) fail("write");
  size_t got = 0;
  while (got < 4 || memcmp(buffer + got - 4, "\r\n\r\n", 4)) {
    if (read(fd, buffer + got, 1) <= 0) fail("handshake"); /* bytewise: never into a frame */
    got++;
  }
  if (*token != '-') {
    char text[2048];
    snprintf(text, sizeof text, "{\"t\":\"hello\",\"v\":1,\"token\":\"%s\"}", token);
    say(fd, text);
    snprintf(text, sizeof text, "{\"t\":\"open\",\"sid\":\"%s\"}", sid);
    say(fd, text);
  }
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

/* The length of the frame's header, as far as the first two bytes tell; 2 until then. */
static int frame_head(const listener *l) {
  if (l->have < 2) return 2;
  int size = l->head[1] & 127;
  return size == 126 ? 4 : size == 127 ? 10 : 2;
}

static uint64_t frame_size(const listener *l, int head) {
  uint64_t size = l->head[1] & 127;
  if (head > 2)
    for (size = 0, head -= 1; head >= 2; head--) size |= (uint64_t)l->head[head] << 8 * ((l->frame_head - 1) - head);
  return size;
}

static void finish(listener *l, uint64_t now) {
  int binary = l->head[0] == 0x82;
  const unsigned char *message = l->head + l->frame_head;
  if (binary && l->have >= l->frame_head + HEAD) {
    uint64_t stamp;
    memcpy(&stamp, message + STAMP_AT, 8);
    messages++;
    if (delay_count < MOST_DELAYS) delays[delay_count++] = (now - stamp) / 1e6;
    l->last_seq = message[12] << 24 | message[13] << 16 | message[14] << 8 | message[15];
  }
  l->have = 0;
}

static void feed(listener *l, const unsigned char *data, size_t size, uint64_t now) {
  while (size) {
    if (l->have < 2 || l->have < frame_head(l)) {
      l->head[l->have++] = *data++;
      size--;
      if (l->have < 2 || l->have < frame_head(l)) continue;
      l->frame_head = frame_head(l);
      l->left = frame_size(l, l->frame_head);
      if (!l->left) finish(l, now);
      continue;
    }
    size_t take = l->left < size ? l->left : size;
    size_t room = l->frame_head + HEAD - l->have;
    size_t keep = take < room ? take : room;
    memcpy(l->head + l->have, data, keep);
    l->have += keep;
    l->left -= take;
    data += take;
    size -= take;
    if (!l->left) finish(l, now);
  }
}

static int by_size(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

int main(int argc, char **argv) {
  if (argc != 6) return fprintf(stderr, "usage: %s PORT N ACK_S TOKEN SID\n", argv[0]), 2;
  int port = atoi(argv[1]), count = atoi(argv[2]);
  uint64_t ack_every = atoi(argv[3]) * SECOND;
  listener *all = calloc(count, sizeof *all);
  delays = malloc(MOST_DELAYS * sizeof *delays);
  int poll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
  epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
  for (int i = 0; i < count; i++) {
    all[i].fd = dial(port, argv[4], argv[5]);
    if (ack_every) all[i].acked_at = now_ns() - ack_every * i / count; /* not all at once */
    event.data.u32 = i;
    epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
  }
  printf("ready\n");
  fflush(stdout);
  static struct epoll_event events[4096];
  for (int done = 0; !done;) {
    int n = epoll_wait(poll, events, 4096, 1000);
    uint64_t now = now_ns();
    for (int i = 0; i < n; i++) {
      if (events[i].data.u32 == UINT32_MAX) {
        done = read(0, buffer, sizeof buffer) <= 0;
        continue;
      }
      listener *l = &all[events[i].data.u32];
      ssize_t got = read(l->fd, buffer, sizeof buffer);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) return fprintf(stderr, "a listener was closed\n"), 1;
      feed(l, buffer, got, now_ns());
      if (ack_every && now > l->acked_at + ack_every) {
        char text[256];
        l->acked_at = now;
        snprintf(text, sizeof text, "{\"t\":\"ack\",\"sid\":\"%s\",\"seq\":%u,\"play_ms\":%u,\"buf_ms\":0,\"ts\":1}",
                 argv[5], l->last_seq, l->last_seq * 200);
        say(l->fd, text);
      }
    }
  }
  qsort(delays, delay_count, sizeof *delays, by_size);
  double p50 = delay_count ? delays[delay_count / 2] : 0;
  double p99 = delay_count ? delays[(size_t)(delay_count * 0.99)] : 0;
  printf("{\"messages\": %llu, \"p50_ms\": %.2f, \"p99_ms\": %.2f}\n", (unsigned long long)messages, p50, p99);
  return 0;
}
