// A CUDA library that is opened when its first function is called. Linked in place of the real one, it lets the program
// start where there is none; a call then returns MISSING, an error code of that library.
//
// toolkit.sh compiles it once per library, with FILE_NAME, MISSING and functions.h: a line FUNCTION(name) for each.
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct Function {
    void *target;  // at first `find`, below
    const char *name;
};

static long missing(void) { return MISSING; }
static const char *missing_text(void) { return FILE_NAME " is not installed"; }

static void *library;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_in(const char *folder, const char *below) {
    char path[4096];
    if (library || !folder || !*folder) return;
    if (snprintf(path, sizeof path, "%s%s/" FILE_NAME, folder, below) < (int)sizeof path)
        library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
}

static void open_library(void) {
    open_in(getenv("CUDA_LAZY_PATH"), "");
    if (!library) library = dlopen(FILE_NAME, RTLD_NOW | RTLD_GLOBAL);
    open_in(getenv("CUDA_HOME"), "/lib64");
    open_in(getenv("CUDA_PATH"), "/lib64");
    open_in("/usr/local/cuda", "/lib64");
    open_in("/opt/cuda", "/lib64");
}

// Functions that return a text instead of a code: cublasGetStatusName and the like. cuGetErrorString is none of them.
static int returns_text(const char *name) {
    return strncmp(name, "cuGet", 5) && (strstr(name, "GetStatus") || strstr(name, "GetErrorString"));
}

__attribute__((used)) static void *resolve(struct Function *function) {
    pthread_once(&once, open_library);
    void *target = library ? dlsym(library, function->name) : NULL;
    if (!target) {
        static int told;
        if (library && !__atomic_exchange_n(&told, 1, __ATOMIC_RELAXED))
            fprintf(stderr, FILE_NAME " has no %s: too old a driver or library?\n", function->name);
        target = returns_text(function->name) ? (void *)missing_text : (void *)missing;
    }
    __atomic_store_n(&function->target, target, __ATOMIC_RELEASE);
    return target;
}

// A function jumps to its target with its own Function in a register that no argument is passed in. The first target
// keeps all registers that arguments are passed in, asks `resolve`, and jumps on.
#define RECORD(name) \
    ".pushsection .data\n.balign 8\nfunction_" #name ": .quad find, 1f\n.popsection\n" \
    ".pushsection .rodata\n1: .asciz \"" #name "\"\n.popsection\n.globl " #name "\n"

#if defined(__x86_64__)
__asm__(".text\n.type find,@function\nfind:\npush %rbp\nmov %rsp,%rbp\n"
        ".irp r,rdi,rsi,rdx,rcx,r8,r9\npush %\\r\n.endr\nsub $128,%rsp\n"
        ".irp n,0,1,2,3,4,5,6,7\nmovups %xmm\\n,16*\\n(%rsp)\n.endr\n"
        "mov %r11,%rdi\ncall resolve\nmov %rax,%r11\n"
        ".irp n,0,1,2,3,4,5,6,7\nmovups 16*\\n(%rsp),%xmm\\n\n.endr\nadd $128,%rsp\n"
        ".irp r,r9,r8,rcx,rdx,rsi,rdi\npop %\\r\n.endr\npop %rbp\njmp *%r11\n");
#define FUNCTION(name) \
    __asm__(RECORD(name) ".type " #name ",@function\n" #name ":\nlea function_" #name "(%rip),%r11\njmp *(%r11)\n");
#elif defined(__aarch64__)
__asm__(".text\n.type find,%function\nfind:\nstp x29,x30,[sp,#-224]!\nmov x29,sp\n"
        ".irp n,0,1,2,3,4,5,6,7,8\nstr x\\n,[sp,#16+8*\\n]\n.endr\n"
        ".irp n,0,1,2,3,4,5,6,7\nstr q\\n,[sp,#96+16*\\n]\n.endr\n"
        "mov x0,x16\nbl resolve\nmov x17,x0\n"
        ".irp n,0,1,2,3,4,5,6,7,8\nldr x\\n,[sp,#16+8*\\n]\n.endr\n"
        ".irp n,0,1,2,3,4,5,6,7\nldr q\\n,[sp,#96+16*\\n]\n.endr\n"
        "ldp x29,x30,[sp],#224\nbr x17\n");
#define FUNCTION(name)                                                                                       \
    __asm__(RECORD(name) ".type " #name ",%function\n" #name ":\nadrp x16,function_" #name "\n"              \
            "add x16,x16,:lo12:function_" #name "\nldr x17,[x16]\nbr x17\n");
#else
#error "lazy CUDA libraries are written for x86_64 and aarch64"
#endif

#include "functions.h"
