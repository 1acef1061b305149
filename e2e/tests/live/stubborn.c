/* Threads that no tracer makes answer: one that always runs, and one that writes a one to an address as long as another
 * address has a byte. */
#include <pthread.h>
#include <sched.h>

struct words {
    volatile char *while_there;
    volatile int *write;
};

static void *run(void *data)
{
    struct words *words = data;
    for (;;)
        if (*words->while_there)
            *words->write = 1;
    return 0;
}

void rewrite(char *while_there, int *write)
{
    static struct words words;
    pthread_t thread;
    words.while_there = while_there;
    words.write = write;
    pthread_create(&thread, 0, run, &words);
}

void spin(void)
{
    for (;;)
        sched_yield();
}
