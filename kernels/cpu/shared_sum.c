/* Add up and join arrays of the ranks of one host in memory that all of them have mapped.
 *
 * The memory is a `Line` for each rank, up to a whole page, then two slots for each rank, used in turn. A rank puts its
 * part into its slot, says so in its line, waits until all have, and reads all slots. When it comes to the same slot again,
 * all ranks have spoken in the turn between, so nobody reads the old content any more: one wait for each turn is enough.
 *
 * Every function returns after `patience_ns` of waiting, so that signals are seen and dead ranks noticed; the next call with
 * the same arguments goes on where it was. */
#define _POSIX_C_SOURCE 200809L
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "clones.h"

enum { LINE = 64, BLOCK = 4096, MOST_RANKS = 1024 };

typedef struct { /* written by one rank, read by all */
    _Atomic int64_t phase;
    int64_t widths[2];
    int64_t unused[5];
} Line;
_Static_assert(sizeof(Line) == LINE, "a line of the cache each");

typedef struct { /* private to a rank; kernels/shared_sum.py allocates it */
    Line *lines;
    char *slots;
    int64_t rank, size, slot_bytes, cut_bytes, spins;
    int64_t phase, turn; /* equal on all ranks between two calls */
    int64_t stage, done; /* where the next call goes on */
} Room;

int64_t ollampi_shared_room_bytes(void) { return sizeof(Room); }

/* `memory` as described above, zeros at first; messages of `cut_bytes` or more are added in shares; `spins`: how often to
   look at a line before the core is left to others in every further turn. */
void ollampi_shared_open(Room *room, char *memory, int64_t rank, int64_t size, int64_t slots_at, int64_t slot_bytes,
                         int64_t cut_bytes, int64_t spins) {
    *room = (Room){(Line *)memory, memory + slots_at, rank, size, slot_bytes, cut_bytes, spins, 0, 0, 0, 0};
}

static char *slot(const Room *room, int64_t rank) {
    return room->slots + (2 * rank + (room->turn & 1)) * room->slot_bytes;
}

static void say(Room *room) {
    atomic_store_explicit(&room->lines[room->rank].phase, ++room->phase, memory_order_release);
}

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Whether all ranks have said this phase, after a while at most. */
static int all_said(const Room *room, int64_t patience_ns) {
    int64_t until = 0;
    for (int64_t rank = 0; rank < room->size; rank++) {
        for (int64_t turn = 0; atomic_load_explicit(&room->lines[rank].phase, memory_order_acquire) < room->phase; turn++) {
            if (turn < room->spins) {
                pause_briefly();
                continue;
            }
            sched_yield();
            if (turn % 8 == 7) {
                const int64_t now = clock_ns();
                if (until == 0) until = now + patience_ns;
                if (now >= until) return 0;
            }
        }
    }
    return 1;
}

#define DEFINE_ADD(TYPE)                                                                                              \
    /* out [count] = the parts [count] added up in order. */                                                          \
    CLONES static void add_##TYPE(TYPE *restrict out, const char *const *parts, int64_t size, int64_t count) {         \
        for (int64_t from = 0; from < count; from += BLOCK / (int64_t)sizeof(TYPE)) {                                 \
            const int64_t left = count - from, some = BLOCK / (int64_t)sizeof(TYPE), n = left < some ? left : some;   \
            const TYPE *restrict first = (const TYPE *)parts[0] + from;                                               \
            if (size == 1) memcpy(out + from, first, (size_t)n * sizeof(TYPE));                                       \
            for (int64_t rank = 1; rank < size; rank++) {                                                             \
                const TYPE *restrict part = (const TYPE *)parts[rank] + from;                                         \
                const TYPE *before = rank == 1 ? first : out + from;                                                  \
                for (int64_t i = 0; i < n; i++) out[from + i] = before[i] + part[i];                                  \
            }                                                                                                         \
        }                                                                                                             \
    }
DEFINE_ADD(float)
DEFINE_ADD(double)

static void add(const Room *room, char *out, const char *own, int64_t at, int64_t bytes, int64_t item) {
    const char *parts[MOST_RANKS];
    for (int64_t rank = 0; rank < room->size; rank++) parts[rank] = slot(room, rank) + at;
    parts[room->rank] = own;
    if (item == sizeof(double))
        add_double((double *)out, parts, room->size, bytes / item);
    else
        add_float((float *)out, parts, room->size, bytes / item);
}

/* Where the share of a rank begins in a piece of so many bytes. */
static int64_t share(const Room *room, int64_t rank, int64_t bytes) {
    return rank == room->size ? bytes : bytes / LINE * rank / room->size * LINE;
}

/* One piece, each rank adding up all of it. */
static int add_whole(Room *room, const char *x, char *out, int64_t bytes, int64_t item, int64_t patience_ns) {
    if (room->stage == 0) {
        memcpy(slot(room, room->rank), x, (size_t)bytes);
        say(room);
        room->stage = 1;
    }
    if (!all_said(room, patience_ns)) return 0;
    add(room, out, x, 0, bytes, item);
    return 1;
}

/* One piece, each rank adding up its share, which the others then copy. */
static int add_shares(Room *room, const char *x, char *out, int64_t bytes, int64_t item, int64_t patience_ns) {
    const int64_t begin = share(room, room->rank, bytes), end = share(room, room->rank + 1, bytes);
    char *mine = slot(room, room->rank);
    if (room->stage == 0) {
        memcpy(mine, x, (size_t)begin);
        memcpy(mine + end, x + end, (size_t)(bytes - end));
        say(room);
        room->stage = 1;
    }
    if (room->stage == 1) {
        if (!all_said(room, patience_ns)) return 0;
        add(room, mine + begin, x + begin, begin, end - begin, item);
        say(room);
        room->stage = 2;
    }
    if (!all_said(room, patience_ns)) return 0;
    for (int64_t rank = 0; rank < room->size; rank++) {
        const int64_t from = share(room, rank, bytes);
        memcpy(out + from, slot(room, rank) + from, (size_t)(share(room, rank + 1, bytes) - from));
    }
    return 1;
}

static int64_t next(Room *room, int64_t done) {
    room->turn++;
    room->stage = 0;
    return room->done = done;
}

/* out [bytes / item] = the sum of all ranks' x, added in rank order: the same bits everywhere. Return whether it is done.
   item: 4 for floats, 8 for doubles. */
int64_t ollampi_shared_sum(Room *room, const char *x, char *out, int64_t bytes, int64_t item, int64_t patience_ns) {
    while (room->done < bytes) {
        const int64_t left = bytes - room->done, n = left < room->slot_bytes ? left : room->slot_bytes;
        const int cut = room->size > 2 && n >= room->cut_bytes;
        if (!(cut ? add_shares : add_whole)(room, x + room->done, out + room->done, n, item, patience_ns)) return 0;
        next(room, room->done + n);
    }
    room->done = 0;
    return 1;
}

/* Fill x [bytes] with rank 0's. Return whether it is done. */
int64_t ollampi_shared_share(Room *room, char *x, int64_t bytes, int64_t patience_ns) {
    while (room->done < bytes) {
        const int64_t left = bytes - room->done, n = left < room->slot_bytes ? left : room->slot_bytes;
        if (room->stage == 0) {
            if (room->rank == 0) memcpy(slot(room, 0), x + room->done, (size_t)n);
            say(room);
            room->stage = 1;
        }
        if (!all_said(room, patience_ns)) return 0; /* the others too: they have read what rank 0 writes over next */
        if (room->rank != 0) memcpy(x + room->done, slot(room, 0), (size_t)n);
        next(room, room->done + n);
    }
    room->done = 0;
    return 1;
}

/* Copy what each rank has in its slot, elements from `done` on of its x, to where it belongs in out [rows, total]. */
static void place(const Room *room, float *out, int64_t rows, int64_t total) {
    const int64_t some = room->slot_bytes / (int64_t)sizeof(float);
    for (int64_t rank = 0; rank < room->size; rank++) {
        const int64_t width = room->lines[rank].widths[room->turn & 1], all = rows * width;
        const int64_t end = room->done + some < all ? room->done + some : all;
        const float *from = (const float *)slot(room, rank);
        for (int64_t i = room->done; i < end;) {
            const int64_t row = i / width, column = i % width, run = width - column < end - i ? width - column : end - i;
            memcpy(out + row * total + column, from + i - room->done, (size_t)run * sizeof(float));
            i += run;
        }
        out += width;
    }
}

/* Join x [rows, width] of all ranks side by side into out [rows, total] on rank 0. Return 1 where it is done, 0 where not
   yet, and on rank 0 -1 - total where it is to be called again with a place for the result, `known` = 1. */
int64_t ollampi_shared_gather(Room *room, const float *x, int64_t rows, int64_t width, float *out, int64_t known,
                              int64_t patience_ns) {
    const int64_t some = room->slot_bytes / (int64_t)sizeof(float);
    for (;;) {
        if (room->stage == 0) {
            const int64_t left = rows * width - room->done, n = left < some ? left : some;
            if (n > 0) memcpy(slot(room, room->rank), x + room->done, (size_t)n * sizeof(float));
            room->lines[room->rank].widths[room->turn & 1] = width;
            say(room);
            room->stage = 1;
        }
        if (!all_said(room, patience_ns)) return 0;
        int64_t total = 0, widest = 0;
        for (int64_t rank = 0; rank < room->size; rank++) {
            const int64_t other = room->lines[rank].widths[room->turn & 1];
            total += other;
            widest = other > widest ? other : widest;
        }
        if (room->rank == 0 && !known) return -1 - total;
        if (room->rank == 0) place(room, out, rows, total);
        if (next(room, room->done + some) >= rows * widest) break;
    }
    room->done = 0;
    return 1;
}
