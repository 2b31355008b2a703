/* Files, by paths that are resolved here, inside. Links of /proc that lead to open files are never followed:
 * they would lead to ours. */
#define _GNU_SOURCE
#include "init.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SYS_openat2_ 437
#define NO_MAGICLINKS 0x02
#define LINKS_AT_MOST 40
#define PROC_MAGIC 0x9fa0

struct how {
    uint64_t flags, mode, resolve;
};

int open_at(int base, const char *path, uint64_t flags) {
    struct how how = {flags | O_CLOEXEC, 0, NO_MAGICLINKS};
    return (int)syscall(SYS_openat2_, base, path, &how, sizeof how);
}

/* The path that a request starts with; NULL when it is not one. */
static char *path_of(struct asked *ask) {
    char *stop = ask->size ? memchr(ask->text, 0, ask->size) : NULL;
    if (stop && stop != ask->text)
        return ask->text;
    say_error(ask->conn, STAGE_NONE, EINVAL);
    return NULL;
}

void open_file(struct asked *ask) {
    struct stat found;
    int directory = ask->request.flags & FLAG_DIRECTORY;
    char *path = path_of(ask);
    if (!path)
        return;
    int fd = open_at(AT_FDCWD, path, O_RDONLY | O_NONBLOCK | O_NOCTTY | (directory ? O_DIRECTORY : 0));
    if (fd < 0 || fstat(fd, &found) < 0)
        say_error(ask->conn, STAGE_NONE, errno);
    else if (!directory && !S_ISREG(found.st_mode))
        say_error(ask->conn, STAGE_NONE, S_ISDIR(found.st_mode) ? EISDIR : EINVAL);
    else
        say(ask->conn, REPLY_OK, 0, NULL, 0, fd);
    if (fd >= 0)
        close(fd);
}

void stat_file(struct asked *ask) {
    struct stat found;
    char *path = path_of(ask);
    if (!path)
        return;
    int fd = open_at(AT_FDCWD, path, O_PATH | (ask->request.flags & FLAG_NOFOLLOW ? O_NOFOLLOW : 0));
    if (fd < 0 || fstat(fd, &found) < 0)
        say_error(ask->conn, STAGE_NONE, errno);
    else {
        int64_t values[] = {found.st_mode, found.st_size, found.st_mtim.tv_sec, found.st_mtim.tv_nsec};
        say(ask->conn, REPLY_OK, 0, values, 4, -1);
    }
    if (fd >= 0)
        close(fd);
}

/* Open a directory, making it and its parents where they are missing. */
static int open_making(int base, char *path) {
    int fd = open_at(base, path, O_PATH | O_DIRECTORY);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    for (char *here = path + 1; *here; here++)
        if (*here == '/') {
            *here = 0;
            if (mkdirat(base, path, 0755) < 0 && errno != EEXIST) {
                *here = '/';
                return -1;
            }
            *here = '/';
        }
    if (mkdirat(base, path, 0755) < 0 && errno != EEXIST)
        return -1;
    return open_at(base, path, O_PATH | O_DIRECTORY);
}

/* Splits off the last name, following links to the file itself. Returns the directory; the name in `name`
 * and what is there in `found`, with st_mode 0 when nothing is. */
static int find_place(const char *path, char *name, struct stat *found) {
    char here[PATH_MAX], link[PATH_MAX];
    int base = AT_FDCWD;
    if (snprintf(here, sizeof here, "%s", path) >= (int)sizeof here) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (int links = 0; links < LINKS_AT_MOST; links++) {
        char *slash = strrchr(here, '/'), *last = slash ? slash + 1 : here;
        if (!*last || !strcmp(last, ".") || !strcmp(last, "..")) {
            errno = EISDIR;
            return -1;
        }
        if (strlen(last) > NAME_MAX) {
            errno = ENAMETOOLONG;
            return -1;
        }
        strcpy(name, last);
        if (slash)
            *slash = 0;
        int directory = open_making(base, !slash ? "." : *here ? here : "/"), error = errno;
        if (base != AT_FDCWD)
            close(base);
        if ((base = directory) < 0) {
            errno = error;
            return -1;
        }
        if (fstatat(base, name, found, AT_SYMLINK_NOFOLLOW) < 0) {
            found->st_mode = 0;
            if (errno == ENOENT)
                return base;
            break;
        }
        if (!S_ISLNK(found->st_mode))
            return base;
        struct statfs where;
        errno = ELOOP;
        if (fstatfs(base, &where) < 0 || where.f_type == PROC_MAGIC)
            break;
        ssize_t length = readlinkat(base, name, link, sizeof link - 1);
        if (length < 0)
            break;
        link[length] = 0;
        strcpy(here, link);
        errno = ELOOP;
    }
    int error = errno;
    close(base);
    errno = error;
    return -1;
}

static int write_all(int fd, const char *bytes, size_t size) {
    while (size > 0) {
        ssize_t done = write(fd, bytes, size);
        if (done < 0)
            return -1;
        bytes += done;
        size -= (size_t)done;
    }
    return 0;
}

static int replace(int directory, const char *name, const struct stat *found, mode_t mode, const char *bytes, size_t size) {
    char temporary[64];
    uint64_t number;
    if (getrandom(&number, sizeof number, 0) != sizeof number)
        return -1;
    snprintf(temporary, sizeof temporary, ".%016llx.tmp", (unsigned long long)number);
    int fd = openat(directory, temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600), failed;
    if (fd < 0)
        return -1;
    failed = write_all(fd, bytes, size) < 0 ||
             (found->st_mode && (found->st_uid != geteuid() || found->st_gid != getegid()) &&
              fchown(fd, found->st_uid, found->st_gid) < 0) ||
             fchmod(fd, mode) < 0 || renameat(directory, temporary, directory, name) < 0;
    int error = errno;
    close(fd);
    if (failed)
        unlinkat(directory, temporary, 0);
    errno = error;
    return failed ? -1 : 0;
}

void write_whole(struct asked *ask) {
    char name[NAME_MAX + 1];
    struct stat found;
    char *path = path_of(ask);
    if (!path)
        return;
    char *bytes = path + strlen(path) + 1;
    int directory = find_place(path, name, &found);
    if (directory < 0) {
        say_error(ask->conn, STAGE_NONE, errno);
        return;
    }
    mode_t mode = ask->request.flags & FLAG_MODE ? (mode_t)(ask->request.a & 07777)
                  : found.st_mode                ? found.st_mode & 07777
                                                 : 0644;
    if (found.st_mode && !S_ISREG(found.st_mode))
        say_error(ask->conn, STAGE_NONE, S_ISDIR(found.st_mode) ? EISDIR : EINVAL);
    else if (replace(directory, name, &found, mode, bytes, ask->size - (size_t)(bytes - ask->text)) < 0)
        say_error(ask->conn, STAGE_NONE, errno);
    else
        say(ask->conn, REPLY_OK, 0, NULL, 0, -1);
    close(directory);
}
