/* A program that embeds Python. argv[1] says when it stands still: "before" Python is started, in the program of
 * argv[2] ("run"), or "after" Python was shut down. Built without EMBED it loads the library argv[1] twice, apart from
 * each other, and runs argv[2] in one; the other one is started if there is an argv[3] to run before that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static void stand_still(void)
{
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}

/* Loads a library with everything it needs into a name space of its own. */
static void *load(const char *path)
{
    void *library = dlmopen(LM_ID_NEWLM, path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "%s\n", dlerror());
        _exit(1);
    }
    return library;
}

static void start(void *library, const char *program)
{
    void (*initialize)(void) = (void (*)(void))dlsym(library, "Py_Initialize");
    int (*run)(const char *) = (int (*)(const char *))dlsym(library, "PyRun_SimpleString");
    initialize();
    run(program);
}

#ifdef EMBED
void Py_Initialize(void);
int Py_FinalizeEx(void);
int PyRun_SimpleString(const char *);

static void embed(const char *when, const char *program)
{
    if (!strcmp(when, "before"))
        stand_still();
    Py_Initialize();
    PyRun_SimpleString(program);
    Py_FinalizeEx();
    stand_still();
}
#endif

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
#ifdef EMBED
    embed(argv[1], argv[2]);
#endif
    void *other = load(argv[1]);
    if (argc > 3)
        start(other, argv[3]);
    start(load(argv[1]), argv[2]);
    stand_still();
}
