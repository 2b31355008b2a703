/* What the server, the launcher and the first process of a sandbox say to each other.
 *
 * Every message is one packet of a SOCK_SEQPACKET socket: a fixed head, then strings that end in NUL.
 * The same layout is written down in launcher.py and agent.py; change them together. */
#ifndef FERMATA_WIRE_H
#define FERMATA_WIRE_H

#include <stdint.h>

/* Descriptors that the launcher leaves for the first process of a sandbox. */
enum { FD_LISTEN = 3, FD_LOCK = 4, FD_LIFE = 5, FD_FILTER = 6, FD_SELF = 7, FD_COUNT = 8 };

#define PACKET_BYTES (128 * 1024)
#define PACKET_FDS 16

/* Server to launcher. */
enum { LAUNCH_BOX = 1, LAUNCH_REMOVE = 2 };
struct launch {
    uint32_t op;
    uint32_t lowers;      /* strings: disk, lowers..., binds..., mount points..., then bubblewrap's arguments */
    uint32_t binds;
    uint32_t points;
    uint64_t file_bytes;  /* 0: no ceiling of our own */
    uint64_t data_bytes;
    uint64_t processes;
};
struct launched {
    int32_t pid;          /* with a pidfd beside it; or -1 and the error */
    int32_t error;
};

/* Server to the first process of a sandbox, one request a connection. */
enum {
    OP_PING = 1, OP_EXEC = 2, OP_KILL = 3, OP_OPEN = 4, OP_STAT = 5, OP_WRITE = 6, OP_LISTEN = 7, OP_SHUTDOWN = 8
};
enum {
    FLAG_PAYLOAD = 1,     /* the strings are in a memory file, the first descriptor */
    FLAG_STDIN = 2,       /* EXEC: a descriptor for standard input is passed; else it is /dev/null */
    FLAG_DETACHED = 4,    /* EXEC: the one descriptor is a record to keep output and status in */
    FLAG_NOFOLLOW = 8,    /* STAT */
    FLAG_DIRECTORY = 16,  /* OPEN: must be a directory; else a regular file */
    FLAG_MODE = 32,       /* WRITE: `a` is the mode to set */
    FLAG_TELL = 128,      /* EXEC: answer OK when the command has started */
    FLAG_GROUP = 64,      /* EXEC: the last descriptor is the control group (version 2) to start in */
};
struct request {
    uint32_t op;
    uint32_t flags;
    uint32_t argc;        /* EXEC: strings are cwd, argv..., env... */
    uint32_t envc;
    uint64_t id;          /* EXEC, KILL: chosen by the server */
    int64_t a;
    int64_t b;
};

enum { REPLY_OK = 0, REPLY_ERROR = 1, REPLY_EXIT = 2 };
enum { STAGE_NONE = 0, STAGE_FORK = 1, STAGE_CWD = 2, STAGE_SETUP = 3 };
struct reply {
    uint32_t kind;
    int32_t error;        /* ERROR: errno */
    int64_t v[6];         /* ERROR: v[0] is the stage. EXIT: v[0] is 0-255. STAT: mode, size, seconds, nanoseconds */
};

/* The record of a detached command: this head, then a ring of the last bytes of its output. */
#define RECORD_MAGIC 0x3152444554544146ull
#define RECORD_RING (64 * 1024)
enum { RECORD_RUNNING = 0, RECORD_EXITED = 1 };
struct record {
    uint64_t magic;
    uint64_t written;     /* bytes of output so far, ever; the next one goes to written % RECORD_RING */
    int32_t state;
    int32_t exit_code;
};

#endif
