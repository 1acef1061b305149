/* Threads that know nothing of Python: one that always runs, and those that change the process. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

void spin(void)
{
    for (;;)
        sched_yield();
}

/* What happens to the process once a byte comes. */
struct later {
    int fd;
    int undumpable;
    char **program;
    char *freeze;
};

/* Puts memory in the place of a page that has its content and that nobody can write to, no tracer either. */
static void freeze(char *page)
{
    size_t size = sysconf(_SC_PAGESIZE);
    char *copy = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    page -= (uintptr_t)page % size;
    memcpy(copy, page, size);
    mprotect(copy, size, PROT_READ);
    mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, page);
}

static void *wait_for(void *data)
{
    struct later *later = data;
    char byte;
    if (read(later->fd, &byte, 1) != 1)
        return 0;
    if (later->freeze)
        freeze(later->freeze);
    else if (later->undumpable)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    else
        execv(later->program[0], later->program);
    return 0;
}

static void begin(int fd, int undumpable, char **program, char *page)
{
    static struct later later;
    pthread_t thread;
    later.fd = fd;
    later.undumpable = undumpable;
    later.program = program;
    later.freeze = page;
    pthread_create(&thread, 0, wait_for, &later);
}

void undumpable_after(int fd)
{
    begin(fd, 1, 0, 0);
}

void other_program_after(int fd, char **program)
{
    begin(fd, 0, program, 0);
}

void frozen_after(int fd, char *page)
{
    begin(fd, 0, 0, page);
}
