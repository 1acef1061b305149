/* A program that looks like the Python of a version that this machine does not have: the section with the cookie and
 * the version word, as every CPython from 3.13 on has it. */
#ifndef COOKIE
#define COOKIE 0x7970677562656478 /* xdebugpy */
#endif

#include <stdio.h>
#include <unistd.h>

__attribute__((section(".PyRuntime"), used)) unsigned long _PyRuntime[40000] = {
    COOKIE,
    VERSION_WORD,
};

int main(void)
{
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}
