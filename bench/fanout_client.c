/* N WebSocket listeners in one epoll loop, for the benchmarks of live listening.
 *
 * Usage: fanout_client PORT N [-t TOKEN -s SID] [-a ACK_S] [-b BUF_MS] [-e] [-w SLOW]
 *
 *   -t -s  each says hello and opens the session; without them it only listens
 *   -a -b  each acknowledges its first chunk, then every ACK_S seconds of sound, not all at the same
 *          chunk, and says that it holds BUF_MS of sound
 *   -e     delays are from the header's emit_ms (Unix ms), not from the stamp in the payload
 *          (CLOCK_MONOTONIC ns, little endian, at byte 35: behind header, count, packet length)
 *   -w     the last SLOW of them read 1 kB/s, acknowledge nothing and are left out of the figures
 *
 * Prints "ready" when all are connected, then reads until standard input closes. A line there
 * forgets what was measured so far. At the end it prints one JSON object: audio messages and their
 * delays, and for each listener the longest time its play-out stood still, had it begun at the first
 * chunk (stall_0) or 240 ms later (stall_240), as counts of up to 0, 50, 100, 200 ms, and more. */
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

#define NUMBERS 5

enum { STAMP_AT = 35, HEAD = STAMP_AT + 8 };
enum { TEXT = 0x81, PING = 0x89, PONG = 0x8a };
#define SECOND 1000000000ull
#define MOST_DELAYS 4000000

typedef struct {
  int fd;
  uint64_t left;              /* bytes of the message that are still to come */
  unsigned char head[14 + HEAD]; /* frame header and the message up to its stamp */
  int have, frame_head;
  unsigned last_seq;
  int ack_due;
  uint64_t dry_at[2];         /* when its sound runs out, by prebuffer */
  uint64_t stall[2];          /* its longest stall */
  int heard;
} listener;

static const uint64_t prebuffer[2] = {0, 240000000ull};
static int by_emit;
static unsigned ack_chunks;     /* acknowledge every so many */
static listener *all;

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

/* A masked frame; the mask is zero, so the text stays as it is. */
static void say(int fd, int kind, const void *data, size_t size) {
  unsigned char frame[4096];
  size_t at = 0;
  frame[at++] = kind;
  if (size < 126) {
    frame[at++] = 0x80 | size;
  } else {
    frame[at++] = 0x80 | 126;
    frame[at++] = size >> 8;
    frame[at++] = size & 255;
  }
  memset(frame + at, 0, 4);
  memcpy(frame + at + 4, data, size);
  if (write(fd, frame, at + 4 + size) < 0) fail("write");
}

static int dial(int port, const char *token, const char *sid, int slow) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int small = 4096;
  if (slow) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
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
    say(fd, TEXT, text, strlen(text));
    snprintf(text, sizeof text, "{\"t\":\"open\",\"sid\":\"%s\"}", sid);
    say(fd, TEXT, text, strlen(text));
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

static unsigned big32(const unsigned char *at) {
  return (unsigned)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3];
}

/* Every prebuffer is a player of its own: what comes after its sound ran out stalled it. */
static void play(listener *l, uint64_t now, uint64_t dur) {
  for (int k = 0; k < 2; k++) {
    if (!l->heard) {
      l->dry_at[k] = now + prebuffer[k];
    } else if (now > l->dry_at[k]) {
      if (now - l->dry_at[k] > l->stall[k]) l->stall[k] = now - l->dry_at[k];
      l->dry_at[k] = now;
    }
    l->dry_at[k] += dur;
  }
  l->heard = 1;
}

static void finish(listener *l, uint64_t now) {
  const unsigned char *message = l->head + l->frame_head;
  int is_audio = l->head[0] == 0x82 && l->have >= l->frame_head + 32 && (message[1] & 15) != 3;
  if (is_audio) {
    double delay;
    if (by_emit) {
      struct timespec t;
      clock_gettime(CLOCK_REALTIME, &t);
      delay = (int)((unsigned)(t.tv_sec * 1000ull + t.tv_nsec / 1000000) - big32(message + 28));
    } else {
      uint64_t stamp;
      memcpy(&stamp, message + STAMP_AT, 8);
      delay = (now - stamp) / 1e6;
    }
    messages++;
    if (delay_count < MOST_DELAYS) delays[delay_count++] = delay;
    l->last_seq = big32(message + 12);
    if (ack_chunks) l->ack_due |= (l->last_seq + (l - all)) % ack_chunks == 0;
    play(l, now, big32(message + 24) * 62500ull / 3); /* ticks of 1/48000 s in ns */
  } else if (l->head[0] == PING) {
    say(l->fd, PONG, message, l->have - l->frame_head);
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

static void print_stalls(const listener *all, int count, int k) {
  const uint64_t bounds[NUMBERS - 1] = {0, 50000000ull, 100000000ull, 200000000ull};
  int counts[NUMBERS] = {0};
  for (int i = 0; i < count; i++) {
    int at = 0;
    while (at < NUMBERS - 1 && all[i].stall[k] > bounds[at]) at++;
    counts[at] += all[i].heard;
  }
  printf("\"stall_%d\": [%d, %d, %d, %d, %d]", k ? 240 : 0, counts[0], counts[1], counts[2], counts[3], counts[4]);
}

static double share(double part) {
  return delay_count ? delays[(size_t)((delay_count - 1) * part)] : 0;
}

int main(int argc, char **argv) {
  const char *token = "-", *sid = "-";
  int buf_ms = 0, slow = 0, option;
  while ((option = getopt(argc, argv, "t:s:a:b:w:e")) != -1) switch (option) {
    case 't': token = optarg; break;
    case 's': sid = optarg; break;
    case 'a': ack_chunks = atof(optarg) * 5; break;
    case 'b': buf_ms = atoi(optarg); break;
    case 'w': slow = atoi(optarg); break;
    case 'e': by_emit = 1; break;
    default: return 2;
  }
  if (argc - optind != 2) return fprintf(stderr, "usage: %s [options] PORT N\n", argv[0]), 2;
  int port = atoi(argv[optind]), count = atoi(argv[optind + 1]), quick = count - slow;
  all = calloc(count, sizeof *all);
  delays = malloc(MOST_DELAYS * sizeof *delays);
  int poll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
  epoll_ctl(poll, EPOLL_CTL_ADD, 0, &event);
  for (int i = 0; i < count; i++) {
    all[i].ack_due = ack_chunks > 0;
    all[i].fd = dial(port, token, sid, i >= quick);
    event.data.u32 = i;
    if (i < quick) epoll_ctl(poll, EPOLL_CTL_ADD, all[i].fd, &event);
  }
  printf("ready\n");
  fflush(stdout);
  static struct epoll_event events[4096];
  uint64_t drip_at = 0;
  for (int done = 0; !done;) {
    /* Looking once a millisecond: no write of the server pays for waking this process up, as none
     * does where listeners are on other machines. */
    nanosleep(&(struct timespec){.tv_nsec = SECOND / 1000}, NULL);
    int n = epoll_wait(poll, events, 4096, 0);
    uint64_t now = now_ns();
    if (slow && now > drip_at + SECOND / 10) {
      drip_at = now;
      for (int i = quick; i < count; i++)
        if (read(all[i].fd, buffer, 100) == 0) fprintf(stderr, "a slow listener was closed\n");
    }
    for (int i = 0; i < n; i++) {
      if (events[i].data.u32 == UINT32_MAX) {
        done = read(0, buffer, sizeof buffer) <= 0;
        if (done) break;
        messages = delay_count = 0;
        for (int k = 0; k < quick; k++) all[k].heard = all[k].stall[0] = all[k].stall[1] = 0;
        continue;
      }
      listener *l = &all[events[i].data.u32];
      ssize_t got = read(l->fd, buffer, sizeof buffer);
      if (got < 0 && errno == EAGAIN) continue;
      if (got <= 0) return fprintf(stderr, "a listener was closed\n"), 1;
      feed(l, buffer, got, now_ns());
      if (l->ack_due && l->heard) {
        char text[256];
        l->ack_due = 0;
        snprintf(text, sizeof text,
                 "{\"t\":\"ack\",\"sid\":\"%s\",\"seq\":%u,\"play_ms\":%u,\"buf_ms\":%d,"
                 "\"under\":{\"n\":0,\"ms\":0},\"ts\":1}",
                 sid, l->last_seq, l->last_seq * 200, buf_ms);
        say(l->fd, TEXT, text, strlen(text));
      }
    }
  }
  qsort(delays, delay_count, sizeof *delays, by_size);
  printf("{\"messages\": %llu, \"p50_ms\": %.2f, \"p99_ms\": %.2f, \"max_ms\": %.2f, ",
         (unsigned long long)messages, share(0.5), share(0.99), share(1));
  print_stalls(all, quick, 0);
  printf(", ");
  print_stalls(all, quick, 1);
  printf("}\n");
  return 0;
}
