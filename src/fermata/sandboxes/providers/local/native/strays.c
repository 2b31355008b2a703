/* Knows the keepers, and hunts the strays: processes that are nobody's command any more.
 *
 * A keeper is the reaper of all that its command started. When it is killed, what it kept becomes ours, its
 * children one by one, as each one's parent dies. So we kill every child of ours that is not a keeper, reap,
 * and look again, until none is left. Something that forks faster than that is met with everything stopped. */
#define _GNU_SOURCE
#include "init.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define KEEPERS 4096
#define PROCESSES 65536
#define PATIENCE 16

static struct { pid_t pid; uint64_t id; int doomed; } keepers[KEEPERS];
static int keeper_count;
/* Keepers that we have killed and not reaped yet: what they kept is not ours yet. */
static int doomed_count;
static int strays;

int has_room_for_keeper(void) { return keeper_count < KEEPERS; }

int has_strays(void) { return strays; }

void remember_keeper(pid_t pid, uint64_t id) {
    keepers[keeper_count].pid = pid;
    keepers[keeper_count].doomed = 0;
    keepers[keeper_count++].id = id;
}

void kill_keeper(uint64_t id) {
    for (int i = 0; i < keeper_count; i++)
        if (keepers[i].id == id && !keepers[i].doomed && kill(keepers[i].pid, SIGKILL) == 0) {
            keepers[i].doomed = 1;
            doomed_count++;
        }
    strays = 1;
}

static int is_keeper(pid_t pid) {
    for (int i = 0; i < keeper_count; i++)
        if (keepers[i].pid == pid)
            return 1;
    return 0;
}

/* True when the process was a keeper that ended in order, leaving nothing behind. */
static int forget(pid_t pid, int status) {
    for (int i = 0; i < keeper_count; i++)
        if (keepers[i].pid == pid) {
            doomed_count -= keepers[i].doomed;
            keepers[i] = keepers[--keeper_count];
            return WIFEXITED(status) && WEXITSTATUS(status) == 0;
        }
    return 0;
}

void reap_children(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        if (!forget(pid, status))
            strays = 1;
}

static pid_t parent_of(pid_t pid) {
    char path[32], text[512], *end;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    if (size <= 0)
        return 0;
    text[size] = 0;
    end = strrchr(text, ')'); /* the name before it may hold anything */
    return end && strlen(end) > 4 ? (pid_t)strtol(end + 4, NULL, 10) : 0;
}

/* Kills our children that are no keepers; with `trees`, also all that descends from them. Returns how many
 * there are, and in `mark` a number that changes when others come. */
static int kill_strays(unsigned long *mark, int trees) {
    static pid_t pids[PROCESSES], parents[PROCESSES];
    int count = 0, killed = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    *mark = 0;
    if (!proc)
        return kill(-1, SIGKILL) == 0;
    while ((entry = readdir(proc)) && count < PROCESSES)
        if (isdigit((unsigned char)entry->d_name[0])) {
            pids[count] = (pid_t)strtol(entry->d_name, NULL, 10);
            parents[count] = parent_of(pids[count]);
            count++;
        }
    closedir(proc);
    for (int i = 0; i < count; i++) {
        pid_t top = pids[i], above = parents[i];
        for (int depth = 0; trees && above > 1 && depth < count; depth++) {
            int at = 0;
            while (at < count && pids[at] != above)
                at++;
            top = above;
            above = at < count ? parents[at] : 0;
        }
        if (above == 1 && !is_keeper(top) && kill(pids[i], SIGKILL) == 0) {
            killed++;
            *mark += (unsigned long)pids[i] * 2654435761u;
        }
    }
    return killed;
}

/* The list of our own children, where the kernel keeps one: no need to look at every process. */
static int kill_listed_strays(unsigned long *mark) {
    char text[65536];
    int count = 0, fd = open("/proc/self/task/1/children", O_RDONLY | O_CLOEXEC);
    ssize_t size;
    size_t kept = 0;
    *mark = 0;
    if (fd < 0)
        return kill_strays(mark, 0);
    while ((size = read(fd, text + kept, sizeof text - 1 - kept)) > 0) {
        char *here = text, *end;
        kept += (size_t)size;
        text[kept] = 0;
        for (long pid; (pid = strtol(here, &end, 10)) > 0 && *end == ' '; here = end + 1)
            if (!is_keeper((pid_t)pid) && kill((pid_t)pid, SIGKILL) == 0) {
                count++;
                *mark += (unsigned long)pid * 2654435761u;
            }
        kept = (size_t)(text + kept - here);
        memmove(text, here, kept);
    }
    close(fd);
    return count;
}

/* True when no stray is left. While others keep coming we do not pause; when the same ones are still dying,
 * the main loop comes back. When they keep coming for too long, all processes are stopped in one step, so
 * that none can fork, the strays among them are found and killed, and the others go on. */
int sweep_strays(void) {
    static unsigned long last;
    static int rounds;
    while (strays) {
        unsigned long mark;
        if (++rounds > PATIENCE) {
            kill(-1, SIGSTOP);
            strays = kill_strays(&mark, 1) > 0;
            kill(-1, SIGCONT);
        } else
            strays = kill_listed_strays(&mark) > 0;
        if (strays && mark == last)
            return 0;
        last = mark;
        reap_children();
    }
    last = 0;
    rounds = 0;
    return doomed_count == 0;
}
