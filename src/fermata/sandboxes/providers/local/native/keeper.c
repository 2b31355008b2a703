/* The keeper of one command: starts it, tells how it ended, and is the reaper of all that it started.
 *
 * It ends in order (status 0) only when no process of the command is left. Any other end, by a kill or because
 * the server let go, tells the first process to kill what is left. */
#define _GNU_SOURCE
#include "init.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SYS_close_range_ 436

/* From linux/filter.h, linux/seccomp.h and linux/sched.h, which not every compiler has at hand. */
#define SECCOMP_MODE_FILTER_ 2
#define CLONE_INTO_CGROUP_ 0x200000000ull
#define SYS_clone3_ 435
struct instruction {
    uint16_t code;
    uint8_t yes, no;
    uint32_t value;
};
static struct {
    uint16_t count;
    struct instruction *first;
} filter;
static struct instruction instructions[4096];

struct trouble {
    int32_t stage, error;
};

static struct {
    pid_t command;
    int conn, signals, record, output;
    int ended, detached, group;
    struct record head;
} us;

/* ---- in the command's own process, up to exec ---- */

static void complain(const char *program, int error) {
    dprintf(2, "%s: %s\n", program, error == ENOENT ? "command not found" : strerror(error));
    _exit(error == ENOENT || error == ENOTDIR ? 127 : 126);
}

static void execute(const char *path, char **argv, char **environment) {
    execve(path, argv, environment);
    if (errno != ENOEXEC)
        return;
    /* A script without a first line that names its interpreter: what every shell does. */
    size_t count = 0;
    while (argv[count])
        count++;
    char **shell = calloc(count + 2, sizeof *shell);
    if (!shell)
        return;
    shell[0] = "/bin/sh";
    shell[1] = (char *)path;
    for (size_t i = 1; i < count; i++)
        shell[i + 1] = argv[i];
    execve(shell[0], shell, environment);
    errno = ENOEXEC;
}

static void find_and_execute(char **argv, char **environment) {
    char path[4096];
    const char *places = "/usr/local/bin:/usr/bin:/bin";
    int found = ENOENT;
    if (strchr(argv[0], '/') || !argv[0][0]) {
        execute(argv[0], argv, environment);
        complain(argv[0], errno);
    }
    for (char **entry = environment; *entry; entry++)
        if (!strncmp(*entry, "PATH=", 5))
            places = *entry + 5;
    while (*places) {
        size_t length = strcspn(places, ":");
        if (length && snprintf(path, sizeof path, "%.*s/%s", (int)length, places, argv[0]) < (int)sizeof path) {
            execute(path, argv, environment);
            if (errno != ENOENT && errno != ENOTDIR)
                found = errno;
        }
        places += length + (places[length] == ':');
    }
    complain(argv[0], found);
}

static void give_up(int trouble, int stage) {
    struct trouble told = {stage, errno};
    if (write(trouble, &told, sizeof told) < 0)
        _exit(120);
    _exit(120);
}

static void become_command(const char *cwd, char **argv, char **environment, const int *streams, int trouble) {
    const unsigned long defaults[8] = {0};
    sigset_t none;
    int fd;
    setsid();
    for (int i = 0; i < 3; i++) {
        fd = streams[i] >= 0 ? streams[i] : open("/dev/null", O_RDWR | O_CLOEXEC);
        if (fd < 0 || dup2(fd, i) < 0)
            give_up(trouble, STAGE_SETUP);
    }
    /* Everything else of ours goes now: a path like /proc/self/fd/5 must lead to nothing. */
    if (dup3(trouble, 3, O_CLOEXEC) < 0 && trouble != 3)
        _exit(120);
    trouble = 3;
    syscall(SYS_close_range_, 4, ~0u, 0);
    /* By the bare call: the library's own keeps off the three that it uses itself, and who started the server
       may have ignored those too. Zeros are the default action. */
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, defaults, NULL, 8);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* When memory runs out a command goes before what keeps it. */
    if ((fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC)) >= 0) {
        if (write(fd, "500", 3) != 3)
            errno = 0;
        close(fd);
    }
    if ((fd = open_at(AT_FDCWD, cwd, O_PATH | O_DIRECTORY)) < 0 || fchdir(fd) < 0)
        give_up(trouble, STAGE_CWD);
    close(fd);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER_, &filter) < 0)
        give_up(trouble, STAGE_SETUP);
    find_and_execute(argv, environment);
}

/* The walls that are put up last, around a command alone: our own call into its control group would not get
 * through them. */
int load_filter(int fd) {
    ssize_t size = read(fd, instructions, sizeof instructions);
    if (size <= 0 || size % (ssize_t)sizeof *instructions || size == sizeof instructions)
        return -1;
    filter.count = (uint16_t)((size_t)size / sizeof *instructions);
    filter.first = instructions;
    return 0;
}

/* Being started in a group costs nothing; moving there later waits for every processor of the machine. */
static pid_t fork_into(int group) {
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
    } how = {.flags = CLONE_INTO_CGROUP_, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group};
    if (group < 0)
        return fork();
    return (pid_t)syscall(SYS_clone3_, &how, sizeof how);
}

/* ---- the keeper ---- */

static void write_record(void) {
    if (pwrite(us.record, &us.head, sizeof us.head, 0) < 0)
        _exit(1);
}

static void record_output(const char *bytes, size_t size) {
    while (size > 0) {
        size_t at = us.head.written % RECORD_RING, part = RECORD_RING - at;
        if (part > size)
            part = size;
        ssize_t done = pwrite(us.record, bytes, part, (off_t)(sizeof us.head + at));
        if (done <= 0)
            _exit(1);
        bytes += done;
        size -= (size_t)done;
        us.head.written += (uint64_t)done;
    }
    write_record();
}

/* Copy what is there. False at the end of the output. */
static int drain(void) {
    char bytes[RECORD_RING];
    ssize_t size;
    while ((size = read(us.output, bytes, sizeof bytes)) > 0)
        record_output(bytes, (size_t)size);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 1;
    close(us.output);
    us.output = -1;
    return 0;
}

static void on_end(int status) {
    int64_t code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    us.ended = 1;
    if (us.detached) {
        if (us.output >= 0)
            drain();
        us.head.state = RECORD_EXITED;
        us.head.exit_code = (int32_t)code;
        write_record();
    } else
        say(us.conn, REPLY_EXIT, 0, &code, 1, -1);
}

/* Returns when no process of the command is left. */
static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (pid == us.command)
            on_end(status);
    if (pid < 0 && errno == ECHILD) {
        if (us.output >= 0)
            drain();
        _exit(0);
    }
}

static void watch(void) __attribute__((noreturn));
static void watch(void) {
    reap();
    for (;;) {
        struct pollfd polled[] = {{us.signals, POLLIN, 0}, {us.conn, POLLIN, 0}, {us.output, POLLIN, 0}};
        if (poll(polled, 3, -1) < 0)
            continue;
        if (polled[2].revents)
            drain();
        if (polled[0].revents) {
            struct signalfd_siginfo told;
            while (read(us.signals, &told, sizeof told) > 0)
                continue;
            reap();
        }
        if (polled[1].revents) {
            /* One byte: what still runs may go on. The end of the connection: it may not. */
            char byte;
            if (recv(us.conn, &byte, 1, MSG_DONTWAIT) != 1 || !us.ended)
                _exit(1);
            close(us.conn);
            us.conn = -1;
        }
    }
}

static char **split(char **text, char *end, uint32_t count) {
    char **list = calloc((size_t)count + 1, sizeof *list);
    for (uint32_t i = 0; list && i < count; i++) {
        char *stop = *text < end ? memchr(*text, 0, (size_t)(end - *text)) : NULL;
        if (!stop)
            return NULL;
        list[i] = *text;
        *text = stop + 1;
    }
    return list;
}

static void refuse(int stage, int error) {
    say_error(us.conn, stage, error);
    _exit(0);
}

/* Takes the passed descriptors: payload?, stdin?, then stdout and stderr or the record, then control groups. */
static void take_streams(struct asked *ask, int *streams) {
    int next = (ask->request.flags & FLAG_PAYLOAD) ? 1 : 0;
    if (ask->fd_count < next + 1 + ((ask->request.flags & FLAG_STDIN) != 0) + !us.detached)
        refuse(STAGE_SETUP, EBADMSG);
    if (ask->request.flags & FLAG_STDIN)
        streams[0] = ask->fds[next++];
    if (us.detached) {
        int pair[2];
        us.record = ask->fds[next++];
        us.head.magic = RECORD_MAGIC;
        write_record();
        if (pipe2(pair, O_CLOEXEC) < 0)
            refuse(STAGE_SETUP, errno);
        fcntl(pair[0], F_SETFL, O_NONBLOCK);
        us.output = pair[0];
        streams[1] = streams[2] = pair[1];
    } else {
        streams[1] = ask->fds[next++];
        streams[2] = ask->fds[next++];
    }
    us.group = -1;
    if (ask->request.flags & FLAG_GROUP) {
        if (next != ask->fd_count - 1)
            refuse(STAGE_SETUP, EBADMSG);
        us.group = ask->fds[next];
    }
}

static void await_start(int trouble) {
    struct trouble told;
    ssize_t size;
    while ((size = read(trouble, &told, sizeof told)) < 0 && errno == EINTR)
        continue;
    if (size == sizeof told)
        refuse(told.stage, told.error);
    close(trouble);
}

void keep_command(struct asked *ask) {
    char *text = ask->text, *end = ask->text + ask->size;
    int streams[] = {-1, -1, -1}, trouble[2];
    sigset_t child;
    us.conn = ask->conn;
    us.output = us.record = -1;
    us.detached = (ask->request.flags & FLAG_DETACHED) != 0;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    prctl(PR_SET_NAME, "keeper");
    setsid();
    char **cwd = split(&text, end, 1), **argv = split(&text, end, ask->request.argc);
    char **environment = argv ? split(&text, end, ask->request.envc) : NULL;
    if (!cwd || !environment || ask->request.argc < 1)
        refuse(STAGE_SETUP, EBADMSG);
    take_streams(ask, streams);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    us.signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (us.signals < 0 || pipe2(trouble, O_CLOEXEC) < 0)
        refuse(STAGE_SETUP, errno);
    us.command = fork_into(us.group);
    if (us.command < 0)
        refuse(STAGE_FORK, errno);
    if (us.command == 0)
        become_command(cwd[0], argv, environment, streams, trouble[1]);
    close(trouble[1]);
    for (int i = 0; i < ask->fd_count; i++)
        if (ask->fds[i] != us.record)
            close(ask->fds[i]);
    if (us.detached)
        close(streams[1]);
    await_start(trouble[0]);
    if (ask->request.flags & FLAG_TELL)
        say(us.conn, REPLY_OK, 0, NULL, 0, -1);
    if (us.detached) {
        close(us.conn);
        us.conn = -1;
    }
    watch();
}
