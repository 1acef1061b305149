/* A program that embeds Python and sets hooks before it starts it, as only C can. argv[3] is what Python runs.
 * argv[1] is an audit hook: it "refuses" scripts of debuggers, "watches", or there is "none".
 * argv[2] is a hook to open code: it refuses what lies in /proc by its "name" or after it was "read", it "opens" all, or
 * there is "none". */
#include <string.h>

typedef struct _object PyObject;
typedef PyObject *(*OpenCodeHook)(PyObject *, void *);
typedef int (*AuditHook)(const char *, PyObject *, void *);
extern PyObject *PyExc_RuntimeError;
void PyErr_SetString(PyObject *, const char *);
const char *PyUnicode_AsUTF8(PyObject *);
PyObject *PyImport_ImportModule(const char *);
PyObject *PyObject_CallMethod(PyObject *, const char *, const char *, ...);
void Py_DecRef(PyObject *);
int PyFile_SetOpenCodeHook(OpenCodeHook, void *);
int PySys_AddAuditHook(AuditHook, void *);
void Py_Initialize(void);
int PyRun_SimpleString(const char *);

static PyObject *refused(void)
{
    PyErr_SetString(PyExc_RuntimeError, "this program runs its own code only");
    return NULL;
}

static PyObject *open_code(PyObject *path, void *how)
{
    const char *name = PyUnicode_AsUTF8(path);
    int foreign = name && !strncmp(name, "/proc/", 6);
    if (foreign && !strcmp(how, "name"))
        return refused();
    /* As the hook that is none does it. */
    PyObject *io = PyImport_ImportModule("_io");
    PyObject *file = io ? PyObject_CallMethod(io, "open", "Os", path, "rb") : NULL;
    if (!file || !foreign || strcmp(how, "read"))
        return file;
    Py_DecRef(PyObject_CallMethod(file, "read", NULL));
    Py_DecRef(PyObject_CallMethod(file, "close", NULL));
    return refused();
}

static int audit(const char *event, PyObject *arguments, void *data)
{
    (void)arguments;
    if (strcmp(event, "cpython.remote_debugger_script") || strcmp(data, "refuses"))
        return 0;
    refused();
    return -1;
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    if (strcmp(argv[1], "none"))
        PySys_AddAuditHook(audit, argv[1]);
    if (strcmp(argv[2], "none"))
        PyFile_SetOpenCodeHook(open_code, argv[2]);
    Py_Initialize();
    return PyRun_SimpleString(argv[3]);
}
