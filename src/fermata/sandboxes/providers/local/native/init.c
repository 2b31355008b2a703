/* The first process of a sandbox. It holds no secret and trusts nothing inside.
 *
 * The server reaches it on a socket that it inherited and that has no name inside. It opens files, so that
 * paths are resolved here and never by the host, and starts commands, which so inherit the walls.
 *
 * Each command has a keeper (keeper.c): a process of its own that is the reaper of everything the command
 * starts, so that nothing escapes it by a double fork or a new session. To end a command we kill its keeper;
 * what it kept then becomes our own child, and we kill every child that is not a keeper until none is left.
 * This needs no control group and no right. */
#define _GNU_SOURCE
#include "init.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONNECTIONS 1024

/* Connections whose request has not come yet, and those that wait until the strays are gone. */
static int waiting[CONNECTIONS], waiting_count;
static int sweeping[CONNECTIONS], sweeping_count;
static int child_signals;

void say(int conn, uint32_t kind, int error, const int64_t *values, int count, int fd) {
    struct reply reply = {.kind = kind, .error = error};
    struct iovec part = {&reply, sizeof reply};
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    for (int i = 0; i < count; i++)
        reply.v[i] = values[i];
    if (fd >= 0) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &fd, sizeof fd);
    }
    sendmsg(conn, &message, MSG_NOSIGNAL);
}

void say_error(int conn, int stage, int error) {
    int64_t value = stage;
    say(conn, REPLY_ERROR, error, &value, 1, -1);
}

/* What a forked child must not hold on to. */
static void drop_all_but(int conn) {
    close(FD_LISTEN);
    close(FD_LOCK);
    close(FD_LIFE);
    close(child_signals);
    for (int i = 0; i < waiting_count; i++)
        if (waiting[i] != conn)
            close(waiting[i]);
    for (int i = 0; i < sweeping_count; i++)
        close(sweeping[i]);
}

/* ---- requests ---- */

static void on_exec(struct asked *ask) {
    if (!has_room_for_keeper()) {
        say_error(ask->conn, STAGE_FORK, EAGAIN);
        return;
    }
    pid_t pid = fork();
    if (pid < 0)
        say_error(ask->conn, STAGE_FORK, errno);
    else if (pid == 0) {
        drop_all_but(ask->conn);
        keep_command(ask);
    } else
        remember_keeper(pid, ask->request.id);
}

/* True when the connection is to stay open for the answer. */
static int on_kill(struct asked *ask) {
    kill_keeper(ask->request.id);
    if (sweeping_count == CONNECTIONS) {
        say_error(ask->conn, STAGE_NONE, EAGAIN);
        return 0;
    }
    sweeping[sweeping_count++] = ask->conn;
    return 1;
}

static void tell_swept(void) {
    for (int i = 0; i < sweeping_count; i++) {
        say(sweeping[i], REPLY_OK, 0, NULL, 0, -1);
        close(sweeping[i]);
    }
    sweeping_count = 0;
}

static void on_listen(struct asked *ask) {
    struct sockaddr_in where = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)ask->request.a), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&where, sizeof where) < 0 || listen(fd, 512) < 0)
        say_error(ask->conn, STAGE_NONE, errno);
    else
        say(ask->conn, REPLY_OK, 0, NULL, 0, fd);
    if (fd >= 0)
        close(fd);
}

/* A large write goes on beside us; where no process can be had, we do it ourselves. */
static void on_write(struct asked *ask) {
    if (ask->request.flags & FLAG_PAYLOAD && has_room_for_keeper()) {
        pid_t pid = fork();
        if (pid == 0) {
            drop_all_but(ask->conn);
            write_whole(ask);
            _exit(0);
        }
        if (pid > 0) {
            remember_keeper(pid, 0);
            return;
        }
    }
    write_whole(ask);
}

/* True when the connection stays open. */
static int answer(struct asked *ask) {
    switch (ask->request.op) {
    case OP_PING: say(ask->conn, REPLY_OK, 0, NULL, 0, -1); return 0;
    case OP_EXEC: on_exec(ask); return 0;
    case OP_KILL: return on_kill(ask);
    case OP_OPEN: open_file(ask); return 0;
    case OP_STAT: stat_file(ask); return 0;
    case OP_WRITE: on_write(ask); return 0;
    case OP_LISTEN: on_listen(ask); return 0;
    case OP_SHUTDOWN: _exit(0);
    default: say_error(ask->conn, STAGE_NONE, EBADMSG); return 0;
    }
}

/* Strings that were too long for a packet. */
static int take_payload(struct asked *ask) {
    struct stat found;
    if (ask->fd_count < 1 || fstat(ask->fds[0], &found) < 0 || found.st_size < 1)
        return -1;
    ask->size = (size_t)found.st_size;
    ask->text = mmap(NULL, ask->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, ask->fds[0], 0);
    return ask->text == MAP_FAILED ? -1 : 0;
}

/* False when there is nothing to read yet. */
static int serve(int conn) {
    static char packet[PACKET_BYTES + 1];
    char space[CMSG_SPACE(sizeof(int) * PACKET_FDS)];
    struct iovec part = {packet, PACKET_BYTES};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct asked ask = {.conn = conn};
    int stays = 0, payload = 0;
    ssize_t size = recvmsg(conn, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    for (struct cmsghdr *head = size > 0 ? CMSG_FIRSTHDR(&message) : NULL; head; head = CMSG_NXTHDR(&message, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            ask.fd_count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(ask.fds, CMSG_DATA(head), sizeof(int) * (size_t)ask.fd_count);
        }
    if (size >= (ssize_t)sizeof ask.request) {
        memcpy(&ask.request, packet, sizeof ask.request);
        packet[size] = 0;
        ask.text = packet + sizeof ask.request;
        ask.size = (size_t)size - sizeof ask.request;
        payload = (ask.request.flags & FLAG_PAYLOAD) != 0;
        if (payload && take_payload(&ask) < 0)
            say_error(conn, STAGE_NONE, EBADMSG);
        else
            stays = answer(&ask);
        if (payload && ask.text && ask.text != MAP_FAILED)
            munmap(ask.text, ask.size);
    }
    for (int i = 0; i < ask.fd_count; i++)
        close(ask.fds[i]);
    if (!stays)
        close(conn);
    return 1;
}

/* From linux/capability.h, which not every compiler has at hand. */
#define CAP_VERSION_3 0x20080522
#define CAP_SETPCAP 8
struct cap_head {
    uint32_t version;
    int pid;
};
struct cap_set {
    uint32_t effective, permitted, inheritable;
};

/* Keep the capabilities we were given, less the one that lets us give up the others for good. */
static void give_up_capabilities(void) {
    struct cap_head head = {CAP_VERSION_3, 0};
    struct cap_set sets[2];
    if (syscall(SYS_capget, &head, sets) < 0)
        _exit(4);
    sets[0].permitted &= ~(1u << CAP_SETPCAP);
    for (int cap = 0; cap < 64; cap++)
        if (!(sets[cap / 32].permitted & 1u << cap % 32) && prctl(PR_CAPBSET_READ, cap) == 1 &&
            prctl(PR_CAPBSET_DROP, cap) < 0)
            _exit(4);
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int i = 0; i < 2; i++) {
        sets[i].effective = sets[i].permitted;
        sets[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &head, sets) < 0)
        _exit(4);
}

static void set_up(char *name, size_t length) {
    sigset_t child;
    prctl(PR_SET_DUMPABLE, 0); /* nobody inside may trace us or read our /proc entries */
    prctl(PR_SET_NAME, "init");
    memset(name, 0, length);
    memcpy(name, "init", 4);
    give_up_capabilities();
    if (load_filter(FD_FILTER) < 0)
        _exit(5);
    close(FD_SELF);
    close(FD_FILTER);
    for (int fd = FD_LISTEN; fd <= FD_LIFE; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(FD_LISTEN, F_SETFL, O_RDWR | O_NONBLOCK);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    child_signals = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    umask(022);
    mkdir("/workspace", 0755);
    /* Our own files of the host are let go: the streams become the sandbox's /dev/null. */
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    close(null);
}

int main(int argc, char **argv) {
    static struct pollfd polled[CONNECTIONS + 3];
    if (argc < 1)
        return 2;
    set_up(argv[0], strlen(argv[0]));
    for (;;) {
        int full = waiting_count == CONNECTIONS;
        polled[0] = (struct pollfd){full ? -1 : FD_LISTEN, POLLIN, 0};
        polled[1] = (struct pollfd){child_signals, POLLIN, 0};
        polled[2] = (struct pollfd){FD_LIFE, POLLIN, 0};
        int count = waiting_count;
        for (int i = 0; i < count; i++)
            polled[3 + i] = (struct pollfd){waiting[i], POLLIN, 0};
        if (poll(polled, (nfds_t)(3 + count), has_strays() ? 2 : -1) < 0 && errno != EINTR)
            return 3;
        if (polled[2].revents)
            return 0; /* the launcher is gone */
        if (polled[1].revents) {
            struct signalfd_siginfo told;
            while (read(child_signals, &told, sizeof told) > 0)
                continue;
            reap_children();
        }
        for (int i = count - 1; i >= 0; i--)
            if (polled[3 + i].revents && serve(polled[3 + i].fd))
                waiting[i] = waiting[--waiting_count];
        if (polled[0].revents) {
            int conn = accept4(FD_LISTEN, NULL, NULL, SOCK_CLOEXEC);
            if (conn >= 0) {
                waiting[waiting_count++] = conn;
                if (serve(conn))
                    waiting_count--;
            }
        }
        if (sweep_strays())
            tell_swept();
    }
}
