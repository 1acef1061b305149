/* Threads that know nothing of Python: one that always runs, and those that change the process. */
#include <pthread.h>
#include <sched.h>
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
};

static void *wait_for(void *data)
{
    struct later *later = data;
    char byte;
    if (read(later->fd, &byte, 1) != 1)
        return 0;
    if (later->undumpable)
        prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    else
        execv(later->program[0], later->program);
    return 0;
}

static void begin(int fd, int undumpable, char **program)
{
    static struct later later;
    pthread_t thread;
    later.fd = fd;
    later.undumpable = undumpable;
    later.program = program;
    pthread_create(&thread, 0, wait_for, &later);
}

void undumpable_after(int fd)
{
    begin(fd, 1, 0);
}

void other_program_after(int fd, char **program)
{
    begin(fd, 0, program);
}
