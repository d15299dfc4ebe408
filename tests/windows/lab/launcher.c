/* python.exe of a venv, as CPython's PC/launcher.c does it: starts the base interpreter as a child in a job that dies with
 * this process, tells it where it was started from, and passes its exit code on. */
#include <stdio.h>
#include <wchar.h>
#include <windows.h>

static BOOL WINAPI ignore(DWORD event) { return TRUE; } /* Ctrl-C is the child's to handle */

static BOOL base_folder(const wchar_t *self, wchar_t *home, size_t size) { /* "home = ..." of pyvenv.cfg */
    wchar_t path[MAX_PATH], line[MAX_PATH + 16];
    for (int up = 1; up <= 2; up++) { /* beside this program, or in the folder above */
        wcscpy(path, self);
        for (int i = 0; i < up; i++) *wcsrchr(path, L'\\') = 0;
        wcscat(path, L"\\pyvenv.cfg");
        FILE *file = _wfopen(path, L"rt, ccs=UTF-8");
        if (!file) continue;
        while (fgetws(line, MAX_PATH + 16, file)) {
            if (wcsncmp(line, L"home = ", 7)) continue;
            line[wcscspn(line, L"\r\n")] = 0;
            swprintf(home, size, L"%ls\\python.exe", line + 7);
            fclose(file);
            return TRUE;
        }
        fclose(file);
    }
    return FALSE;
}

int wmain(void) {
    wchar_t self[MAX_PATH], base[MAX_PATH];
    GetModuleFileNameW(NULL, self, MAX_PATH);
    if (!base_folder(self, base, MAX_PATH)) return 106;
    SetEnvironmentVariableW(L"__PYVENV_LAUNCHER__", self);
    HANDLE job = CreateJobObjectW(NULL, NULL);
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION info = {0};
    info.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_SILENT_BREAKAWAY_OK;
    SetInformationJobObject(job, JobObjectExtendedLimitInformation, &info, sizeof info);
    STARTUPINFOW start;
    GetStartupInfoW(&start);
    start.dwFlags |= STARTF_USESTDHANDLES;
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    HANDLE streams[] = {start.hStdInput, start.hStdOutput, start.hStdError};
    for (int i = 0; i < 3; i++) SetHandleInformation(streams[i], HANDLE_FLAG_INHERIT, HANDLE_FLAG_INHERIT);
    SetConsoleCtrlHandler(ignore, TRUE);
    PROCESS_INFORMATION child;
    if (!CreateProcessW(base, GetCommandLineW(), NULL, NULL, TRUE, 0, NULL, NULL, &start, &child)) return 101;
    AssignProcessToJobObject(job, child.hProcess);
    WaitForSingleObject(child.hProcess, INFINITE);
    DWORD code;
    GetExitCodeProcess(child.hProcess, &code);
    return (int)code;
}
