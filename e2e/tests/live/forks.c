/* What a library may do about fork: it takes its time before one, and forks without telling Python. */
#include <pthread.h>
#include <unistd.h>

static int pause_at = -1;

/* Says that a fork has begun, and waits for a byte before it goes on. */
static void before(void)
{
    char byte;
    if (pause_at < 0)
        return;
    if (write(1, "forking\n", 8) == 8)
        (void)!read(pause_at, &byte, 1);
}

void pause_before_forks(int fd)
{
    pause_at = fd;
    pthread_atfork(before, NULL, NULL);
}

/* A fork of which Python learns nothing. */
int bare_fork(void)
{
    return fork();
}
