#ifndef FERMATA_INIT_H
#define FERMATA_INIT_H

#include "wire.h"
#include <stddef.h>
#include <sys/types.h>

/* One request as it came. The strings lie in `text`, which is ours to write in. */
struct asked {
    struct request request;
    int conn;
    int fds[PACKET_FDS];
    int fd_count;
    char *text;
    size_t size;
};

void say(int conn, uint32_t kind, int error, const int64_t *values, int count, int fd);
void say_error(int conn, int stage, int error);

/* keeper.c */
int load_filter(int fd);
void keep_command(struct asked *ask) __attribute__((noreturn));

/* strays.c */
int has_room_for_keeper(void);
int has_strays(void);
void remember_keeper(pid_t pid, uint64_t id);
void kill_keeper(uint64_t id);
void reap_children(void);
int sweep_strays(void);

/* files.c */
int open_at(int base, const char *path, uint64_t flags);
void open_file(struct asked *ask);
void stat_file(struct asked *ask);
void write_whole(struct asked *ask);

#endif
