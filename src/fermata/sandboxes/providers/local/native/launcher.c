/* Starts sandboxes. One small process with one thread, a child of the server:
 *
 * - The parent-death signal of a sandbox hangs on the thread that forked it; this thread lives as long as the
 *   server does. When the server dies, its end of our socket closes, we end, and every sandbox ends with us.
 * - Forking a process of 30 KiB costs nothing; forking a server with many threads is slow and unsafe.
 *
 * For each sandbox we fork, enter a new user and mount namespace that is mapped to ids which nobody on the
 * host has (or, without root, to our own id), mount the overlay there and become bubblewrap. Directories of
 * the data directory are opened before our rights to it are given up and attached below a private /tmp, so
 * no path of the host is resolved later and none can be read in /proc/mounts inside. */
#define _GNU_SOURCE
#include "wire.h"
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define SYS_pidfd_open_ 434
#define SYS_open_tree_ 428
#define SYS_move_mount_ 429
#define SYS_close_range_ 436
#define TREE_CLONE 1
#define TREE_CLOEXEC O_CLOEXEC
#define TREE_RECURSIVE 0x8000
#define MOVE_FROM_EMPTY 0x4

enum mode { MODE_SELF, MODE_RANGE, MODE_SUBID };

static struct {
    enum mode mode;
    const char *uid_map, *gid_map; /* RANGE: text for /proc; SUBID: words for newuidmap and newgidmap */
    const char *bubblewrap;
    int control, init, filter, life_read, life_write;
} us;

static void fail(const char *what) {
    dprintf(2, "launcher: %s: %s\n", what, strerror(errno));
    _exit(120);
}

static void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        fail(path);
    close(fd);
}

static int run_map_tool(const char *tool, pid_t pid, const char *words) {
    char copy[512], number[16], *argv[32];
    int argc = 0;
    pid_t child = fork();
    if (child != 0) {
        int status = 1;
        return child > 0 && waitpid(child, &status, 0) == child && status == 0;
    }
    snprintf(copy, sizeof copy, "%s", words);
    snprintf(number, sizeof number, "%d", pid);
    argv[argc++] = (char *)tool;
    argv[argc++] = number;
    for (char *word = strtok(copy, " "); word && argc < 31; word = strtok(NULL, " "))
        argv[argc++] = word;
    argv[argc] = NULL;
    char *environment[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    execvpe(tool, argv, environment);
    _exit(127);
}

/* In a process outside the new user namespace: gives `pid`, which is in it, its ids. */
static void map_ids(pid_t pid) {
    char path[64];
    if (us.mode == MODE_SUBID) {
        if (!run_map_tool("newuidmap", pid, us.uid_map) || !run_map_tool("newgidmap", pid, us.gid_map)) {
            dprintf(2, "launcher: newuidmap or newgidmap refused\n");
            _exit(120);
        }
        return;
    }
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    write_file(path, us.uid_map);
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    write_file(path, us.gid_map);
}

/* Enter a new user namespace (and, with CLONE_NEWNS in `more`, a mount namespace) and be root in it. */
static void enter_namespace(int more) {
    pid_t self = getpid(), helper = -1;
    int ready[2];
    if (us.mode != MODE_SELF) {
        if (pipe2(ready, O_CLOEXEC) < 0)
            fail("pipe");
        helper = fork();
        if (helper < 0)
            fail("fork");
        if (helper == 0) {
            char byte;
            if (close(ready[1]) < 0 || read(ready[0], &byte, 1) != 1)
                _exit(1);
            map_ids(self);
            _exit(0);
        }
        close(ready[0]);
    }
    if (unshare(CLONE_NEWUSER | more) < 0)
        fail("unshare");
    if (us.mode == MODE_SELF) {
        write_file("/proc/self/setgroups", "deny");
        write_file("/proc/self/uid_map", us.uid_map);
        write_file("/proc/self/gid_map", us.gid_map);
    } else {
        int status;
        if (write(ready[1], "g", 1) != 1 || waitpid(helper, &status, 0) != helper)
            fail("mapping ids");
        if (status != 0)
            _exit(120);
        close(ready[1]);
        if (setgroups(0, NULL) < 0)
            fail("setgroups");
    }
    if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
        fail("setresuid");
}

static int open_tree(const char *path) {
    int fd = (int)syscall(SYS_open_tree_, AT_FDCWD, path, TREE_CLONE | TREE_CLOEXEC | TREE_RECURSIVE);
    if (fd < 0)
        fail("open_tree");
    return fd;
}

static void attach(int tree, const char *where) {
    if (mkdirat(AT_FDCWD, where, 0700) < 0)
        fail("mkdir of a mount point");
    if (syscall(SYS_move_mount_, tree, "", AT_FDCWD, where, MOVE_FROM_EMPTY) < 0)
        fail("move_mount");
    close(tree);
}

static void set_limit(int what, uint64_t most) {
    struct rlimit limit = {most, most}, had;
    if (getrlimit(what, &had) == 0 && had.rlim_max != RLIM_INFINITY && had.rlim_max < most)
        limit.rlim_cur = limit.rlim_max = had.rlim_max;
    if (setrlimit(what, &limit) < 0)
        fail("setrlimit");
}

static void set_limits(const struct launch *ask) {
    set_limit(RLIMIT_CORE, 0);
    set_limit(RLIMIT_NOFILE, 65536);
    if (ask->file_bytes)
        set_limit(RLIMIT_FSIZE, ask->file_bytes);
    if (ask->data_bytes)
        set_limit(RLIMIT_DATA, ask->data_bytes);
    if (ask->processes)
        set_limit(RLIMIT_NPROC, ask->processes);
}

/* Code inside may have put a link where bubblewrap mounts; there must be a directory of the disk itself. */
static void make_mount_point(int root, const char *name) {
    struct stat found;
    if (fstatat(root, name, &found, AT_SYMLINK_NOFOLLOW) == 0) {
        if (S_ISDIR(found.st_mode))
            return;
        if (unlinkat(root, name, 0) < 0)
            fail("clearing a mount point");
    }
    if (mkdirat(root, name, 0755) < 0)
        fail("making a mount point");
}

static char *next(char **strings, char *end) {
    char *here = *strings, *stop = here < end ? memchr(here, 0, (size_t)(end - here)) : NULL;
    if (!stop) {
        errno = EBADMSG;
        fail("message");
    }
    *strings = stop + 1;
    return here;
}

static void mount_disk(const struct launch *ask, char **strings, char *end) {
    int trees[512];
    uint32_t count = 1 + ask->lowers + ask->binds;
    char name[32], options[8192];
    size_t used;
    if (count > 512) {
        errno = E2BIG;
        fail("too many layers");
    }
    if (us.mode == MODE_RANGE) /* the data directory is closed to the ids of a sandbox */
        for (uint32_t i = 0; i < count; i++)
            trees[i] = open_tree(next(strings, end));
    enter_namespace(CLONE_NEWNS);
    if (us.mode != MODE_RANGE)
        for (uint32_t i = 0; i < count; i++)
            trees[i] = open_tree(next(strings, end));
    if (mount("none", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700,size=1m") < 0 || chdir("/tmp") < 0)
        fail("tmpfs");
    if (mkdir("root", 0700) < 0 || mkdir("none", 0555) < 0)
        fail("mkdir");
    close(open("empty", O_CREAT | O_WRONLY | O_CLOEXEC, 0444));
    attach(trees[0], "disk");
    used = (size_t)snprintf(options, sizeof options, "userxattr,upperdir=disk/upper,workdir=disk/work,lowerdir=");
    for (uint32_t i = 1; i <= ask->lowers; i++) {
        snprintf(name, sizeof name, "%u", i);
        attach(trees[i], name);
        used += (size_t)snprintf(options + used, sizeof options - used, i > 1 ? ":%u" : "%u", i);
    }
    for (uint32_t i = 0; i < ask->binds; i++) {
        snprintf(name, sizeof name, "bind%u", i);
        attach(trees[1 + ask->lowers + i], name);
    }
    if (mount("overlay", "root", "overlay", MS_NOSUID | MS_NODEV, options) < 0)
        fail("overlay");
    int root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    for (uint32_t i = 0; i < ask->points; i++)
        make_mount_point(root, next(strings, end));
    close(root);
}

/* Move every descriptor out of the way, then to its place; nothing else goes on. */
static void place_descriptors(int listener, int lock, int errors) {
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", us.filter);
    int filter = open(path, O_RDONLY | O_CLOEXEC); /* our own position in it */
    int from[] = {null, null, errors, listener, lock, us.life_read, filter, us.init};
    if (null < 0 || filter < 0)
        fail("open");
    for (int i = 0; i < FD_COUNT; i++)
        if ((from[i] = fcntl(from[i], F_DUPFD_CLOEXEC, 64)) < 0)
            fail("dup");
    for (int i = 0; i < FD_COUNT; i++)
        if (dup2(from[i], i) < 0)
            fail("dup2");
    if (syscall(SYS_close_range_, FD_COUNT, ~0u, 0) < 0)
        fail("close_range");
}

static void reset_signals(void) {
    sigset_t none;
    const int changed[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGCHLD};
    for (size_t i = 0; i < sizeof changed / sizeof *changed; i++)
        signal(changed[i], SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void boot(const struct launch *ask, char *strings, char *end, int *fds) {
    char *argv[256];
    int argc = 0;
    if (dup2(fds[2], 2) < 0)
        _exit(120);
    reset_signals();
    setsid();
    umask(022);
    mount_disk(ask, &strings, end);
    /* Nothing in a sandbox may make a user namespace, whatever the filter says. */
    write_file("/proc/sys/user/max_user_namespaces", "0");
    set_limits(ask);
    argv[argc++] = "bwrap";
    while (strings < end && argc < 255)
        argv[argc++] = next(&strings, end);
    argv[argc] = NULL;
    place_descriptors(fds[0], fds[1], fds[2]);
    char *environment[] = {NULL};
    execve(us.bubblewrap, argv, environment);
    fail("bubblewrap");
}

/* Delete a tree with the rights of whoever is root inside: files of a sandbox may be closed to us. */
static void remove_tree(char *strings, char *end) {
    char *path = next(&strings, end);
    reset_signals();
    setsid();
    if (us.mode != MODE_RANGE)
        enter_namespace(0);
    char *argv[] = {"rm", "-rf", "--one-file-system", "--", path, NULL};
    char *environment[] = {"PATH=/usr/bin:/bin", NULL};
    syscall(SYS_close_range_, 3, ~0u, 0);
    execvpe("rm", argv, environment);
    fail("rm");
}

static void answer(pid_t pid, int error) {
    struct launched reply = {pid, error};
    struct iovec part = {&reply, sizeof reply};
    char space[CMSG_SPACE(sizeof(int))] = {0};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    int pidfd = pid > 0 ? (int)syscall(SYS_pidfd_open_, pid, 0) : -1;
    if (pidfd >= 0) {
        message.msg_control = space;
        message.msg_controllen = sizeof space;
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(head), &pidfd, sizeof pidfd);
    }
    sendmsg(us.control, &message, MSG_NOSIGNAL);
    if (pidfd >= 0)
        close(pidfd);
}

static void serve(char *packet, size_t size, int *fds, int count) {
    struct launch ask;
    if (size < sizeof ask) {
        answer(-1, EBADMSG);
        return;
    }
    memcpy(&ask, packet, sizeof ask);
    if (ask.op == LAUNCH_BOX && count < 3) {
        answer(-1, EBADMSG);
        return;
    }
    pid_t pid = fork();
    if (pid == 0) {
        if (ask.op == LAUNCH_BOX)
            boot(&ask, packet + sizeof ask, packet + size, fds);
        remove_tree(packet + sizeof ask, packet + size);
    }
    answer(pid, errno);
}

static void reap(void) {
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
}

static void on_child(int number) { (void)number; }

/* False when the server is gone. */
static int serve_next(void) {
    static char packet[PACKET_BYTES];
    char space[CMSG_SPACE(sizeof(int) * PACKET_FDS)];
    struct iovec part = {packet, sizeof packet};
    struct msghdr message = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    int fds[PACKET_FDS], count = 0;
    ssize_t size = recvmsg(us.control, &message, MSG_CMSG_CLOEXEC);
    if (size <= 0)
        return size < 0 && errno == EINTR;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head))
        if (head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
            count = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(fds, CMSG_DATA(head), sizeof(int) * (size_t)count);
        }
    serve(packet, (size_t)size, fds, count);
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return 1;
}

int main(int argc, char **argv) {
    int pair[2];
    sigset_t child, none;
    struct sigaction reaping = {.sa_handler = on_child};
    if (argc != 8)
        return 2;
    us.control = atoi(argv[1]);
    us.init = atoi(argv[2]);
    us.filter = atoi(argv[3]);
    us.mode = !strcmp(argv[4], "range") ? MODE_RANGE : !strcmp(argv[4], "subid") ? MODE_SUBID : MODE_SELF;
    us.uid_map = argv[5];
    us.gid_map = argv[6];
    us.bubblewrap = argv[7];
    fcntl(us.control, F_SETFD, FD_CLOEXEC);
    fcntl(us.init, F_SETFD, FD_CLOEXEC);
    fcntl(us.filter, F_SETFD, FD_CLOEXEC);
    if (pipe2(pair, O_CLOEXEC) < 0)
        return 3;
    us.life_read = pair[0];
    us.life_write = pair[1];
    signal(SIGINT, SIG_IGN);
    signal(SIGTERM, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    /* SIGCHLD arrives only while we wait, so that a child is never reaped before its pidfd is out. */
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, &none);
    sigaction(SIGCHLD, &reaping, NULL);
    struct pollfd wait = {us.control, POLLIN, 0};
    for (;;) {
        reap();
        if (ppoll(&wait, 1, NULL, &none) > 0 && !serve_next())
            return 0; /* every sandbox ends with us */
    }
}
