/* python.exe as CPython builds it: a console program whose main is Py_Main of python311.dll. */
#include <windows.h>

typedef int (*py_main_t)(int, wchar_t **);
typedef void (*set_app_type_t)(int);

int wmain(int argc, wchar_t **argv) {
    /* As a console program, dup2() onto 0, 1 and 2 also sets the standard handles that children inherit. */
    HMODULE crt = LoadLibraryW(L"ucrtbase.dll");
    set_app_type_t set_app_type = crt ? (set_app_type_t)(void *)GetProcAddress(crt, "_set_app_type") : NULL;
    if (set_app_type) set_app_type(1 /* _crt_console_app */);
    HMODULE python = LoadLibraryW(L"python311.dll");
    if (!python) return 103;
    return ((py_main_t)(void *)GetProcAddress(python, "Py_Main"))(argc, argv);
}
