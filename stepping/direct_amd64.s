# The routine by which a Go program makes some of its calls itself, though a filter sends all others to a listener; GNU
# as, AT&T syntax. `direct_calls.py` says what it is for, and `direct_layout.py` what lies around it.
#
# Built by `python -m stepping.gen_ring` into `direct_code_amd64.py`; a test builds it again and compares.
#
# `enter` stands at the entry of Go's Syscall6, and does its four moves first. What it changes besides (rbx, rcx, r9,
# r11 to r13, xmm0 and flags) is dead there, or the call's to change; a call that is not made here has all its registers
# as they were, and goes on at Syscall6's syscall instruction. `control` stands where the runtime of Go before 1.21 loads
# the number of epoll_ctl.

        # Parameters, from the page's start.
        .set PASS,         0x00
        .set CALL,         0x08         # address of Syscall6's syscall instruction
        .set AFTER,        0x10         # and of what is behind it
        .set CONTROL,      0x18         # of epollctl's, and
        .set CONTROLLED,   0x20         # of what is behind that
        .set CODE,         0x40

        # Data, from there, too.
        .set COUNT,        0x1000       # threads that have looked at what follows, and are not done
        .set OPENS,        0x1004       # whether files may be opened, closed and looked at here
        .set FROM,         0x1008       # where pointers may lead: memory of the program that is there to be read and written
        .set REACH,        0x1010
        .set FREE,         0x1018       # the slots whose numbers are free, a bit each; lower slots have lower numbers
        .set NUMBERS,      0x1040       # the number of each slot
        .set CONTENTS,     0x1140       # and which file is there
        .set TABLE,        0x2000       # by descriptor: PASSES, IS_FILE, and from SLOT_SHIFT on its slot + 1, if it has one
        .set FILES,        0x6000       # by hash of the path

        .set DESCRIPTORS,  16384
        .set PASSES,       1
        .set IS_FILE,      2
        .set SLOT_SHIFT,   2
        .set SLOT_MASK,    0xfc

        # A file, 512 bytes.
        .set FILE_SHIFT,   9
        .set FILES_MASK,   63
        .set HASH,         0
        .set LENGTH,       4            # of the path; 0: there is none
        .set HOW,          8            # the flags of the open
        .set STAT,         16
        .set PATH,         160
        .set MAX_PATH,     352

        .set NR_CLOSE,     3
        .set NR_FSTAT,     5
        .set NR_LSEEK,     8
        .set NR_SENDFILE,  40
        .set NR_EPOLL_CTL, 233
        .set NR_OPENAT,    257
        .set NR_NEWFSTATAT, 262
        .set ADD,          1
        .set EPERM,        1
        .set AT_FDCWD,     0xffffff9c
        .set AT_SYMLINK_NOFOLLOW, 0x100

        .text
        .globl enter, control
page_code:
enter:
        mov     %rsi, %r10              # what Syscall6 would have done
        mov     %rdi, %rdx
        mov     %rcx, %rsi
        mov     %rbx, %rdi
        cmp     $1, %rax
        ja      not_read_or_write
        cmp     $DESCRIPTORS, %rdi
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $PASSES, (%r11,%rdi)
        jz      stop
make:   lock incl page_code-CODE+COUNT(%rip)
        testb   $PASSES, (%r11,%rdi)    # once more: whoever cleared it has not seen us yet
        jz      undo
pass:   mov     page_code-CODE+PASS(%rip), %r9
        syscall
        lock decl page_code-CODE+COUNT(%rip)
        jmp     *page_code-CODE+AFTER(%rip)
undo:   lock decl page_code-CODE+COUNT(%rip)
stop:   jmp     *page_code-CODE+CALL(%rip)

not_read_or_write:
        cmp     $NR_LSEEK, %rax
        je      seek
        cmp     $NR_CLOSE, %rax
        je      close
        cmp     $NR_SENDFILE, %rax
        je      send
        cmp     $NR_FSTAT, %rax
        je      look
        cmp     $NR_OPENAT, %rax
        je      find
        cmp     $NR_NEWFSTATAT, %rax
        je      find
        cmp     $NR_EPOLL_CTL, %rax
        jne     stop
        cmp     $ADD, %rsi
        jne     stop
        cmp     $DESCRIPTORS, %rdx
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $IS_FILE, (%r11,%rdx)
        jz      stop
        mov     $-EPERM, %rax           # as the kernel says
        jmp     *page_code-CODE+AFTER(%rip)

control:
        mov     $NR_EPOLL_CTL, %eax     # what was there
        cmp     $ADD, %esi
        jne     1f
        cmp     $DESCRIPTORS, %edx
        jae     1f
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $IS_FILE, (%r11,%rdx)
        jz      1f
        mov     $-EPERM, %rax
        jmp     *page_code-CODE+CONTROLLED(%rip)
1:      jmp     *page_code-CODE+CONTROL(%rip)

seek:   cmp     $DESCRIPTORS, %rdi
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $IS_FILE, (%r11,%rdi)
        jnz     make
        jmp     stop

        # From a file, at its own offset, to what is none.
send:   test    %rdx, %rdx
        jnz     stop
        cmp     $DESCRIPTORS, %rdi
        jae     stop
        cmp     $DESCRIPTORS, %rsi
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $IS_FILE, (%r11,%rsi)
        jz      stop
        lock incl page_code-CODE+COUNT(%rip)
        testb   $IS_FILE, (%r11,%rsi)
        jz      undo
        movzbl  (%r11,%rdi), %ecx
        and     $PASSES|IS_FILE, %ecx
        cmp     $PASSES, %ecx
        je      pass
        jmp     undo

        # Attributes of a descriptor.
look:   cmp     $DESCRIPTORS, %rdi
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $SLOT_MASK, (%r11,%rdi)
        jz      stop
        lock incl page_code-CODE+COUNT(%rip)
        cmpl    $0, page_code-CODE+OPENS(%rip)
        je      undo
        movzbl  (%r11,%rdi), %ecx
        testb   $IS_FILE, %cl
        jz      undo
        shr     $SLOT_SHIFT, %ecx
        jz      undo
        mov     %rsi, %rbx              # where they go
        lea     page_code-CODE+CONTENTS-4(%rip), %r12
        mov     (%r12,%rcx,4), %r12d
        jmp     tell

        # A file by its path: hashed, and compared.
find:   lock incl page_code-CODE+COUNT(%rip)
        cmpl    $0, page_code-CODE+OPENS(%rip)
        je      undo
        cmp     $AT_FDCWD, %edi
        jne     undo
        mov     %rsi, %rcx
        sub     page_code-CODE+FROM(%rip), %rcx
        cmp     page_code-CODE+REACH(%rip), %rcx
        jae     undo
        xor     %ecx, %ecx
        xor     %ebx, %ebx
1:      movzbl  (%rsi,%rcx), %r11d
        test    %r11d, %r11d
        jz      2f
        imul    $31, %ebx, %ebx
        add     %r11d, %ebx
        inc     %ecx
        cmp     $MAX_PATH, %ecx
        jb      1b
        jmp     undo
2:      test    %ecx, %ecx
        jz      undo
        mov     %ebx, %r12d
        and     $FILES_MASK, %r12d
        mov     %r12d, %r13d
        shl     $FILE_SHIFT, %r13d
        lea     page_code-CODE+FILES(%rip), %r11
        add     %r11, %r13
        cmp     %ebx, HASH(%r13)
        jne     undo
        cmp     %ecx, LENGTH(%r13)
        jne     undo
3:      movzbl  -1(%rsi,%rcx), %r11d
        cmp     %r11b, PATH-1(%r13,%rcx)
        jne     undo
        dec     %ecx
        jnz     3b
        cmp     $NR_OPENAT, %rax
        je      open
        test    $~AT_SYMLINK_NOFOLLOW, %r10d
        jnz     undo
        mov     %rdx, %rbx

        # The attributes of file r12 go to rbx.
tell:   mov     %rbx, %rcx
        sub     page_code-CODE+FROM(%rip), %rcx
        cmp     page_code-CODE+REACH(%rip), %rcx
        jae     undo
        shl     $FILE_SHIFT, %r12d
        lea     page_code-CODE+FILES(%rip), %r11
        add     %r11, %r12
        .irp    at, 0, 16, 32, 48, 64, 80, 96, 112, 128
        movups  STAT+\at(%r12), %xmm0
        movups  %xmm0, \at(%rbx)
        .endr
        xor     %eax, %eax
        lock decl page_code-CODE+COUNT(%rip)
        jmp     *page_code-CODE+AFTER(%rip)

        # The file r12, at r13, gets the lowest free number, if that is where it lies already.
open:   cmp     %edx, HOW(%r13)
        jne     undo
1:      mov     page_code-CODE+FREE(%rip), %rax
        bsf     %rax, %rcx
        jz      not_open
        lea     page_code-CODE+CONTENTS(%rip), %r13
        cmp     %r12d, (%r13,%rcx,4)
        jne     not_open
        mov     %rax, %rbx
        btr     %rcx, %rbx
        lock cmpxchg %rbx, page_code-CODE+FREE(%rip)
        jne     1b
        lea     page_code-CODE+NUMBERS(%rip), %r13
        mov     (%r13,%rcx,4), %r13d
        mov     %r13, %rdi              # from its beginning
        xor     %esi, %esi
        xor     %edx, %edx
        mov     page_code-CODE+PASS(%rip), %r9
        mov     $NR_LSEEK, %eax
        syscall
        lea     page_code-CODE+TABLE(%rip), %r11
        lock orb $PASSES|IS_FILE, (%r11,%r13)
        lock decl page_code-CODE+COUNT(%rip)
        mov     %r13, %rax
        jmp     *page_code-CODE+AFTER(%rip)
not_open:
        mov     $NR_OPENAT, %eax
        jmp     undo

        # Of several threads that close a number, one does.
close:  cmp     $DESCRIPTORS, %rdi
        jae     stop
        lea     page_code-CODE+TABLE(%rip), %r11
        testb   $SLOT_MASK, (%r11,%rdi)
        jz      stop
        lock incl page_code-CODE+COUNT(%rip)
        cmpl    $0, page_code-CODE+OPENS(%rip)
        je      undo
        movzbl  (%r11,%rdi), %eax
        mov     %eax, %ebx
        and     $SLOT_MASK, %ebx
        jz      not_closed
        or      $PASSES|IS_FILE, %eax
        lock cmpxchg %bl, (%r11,%rdi)
        jne     not_closed
        shr     $SLOT_SHIFT, %ebx
        dec     %ebx
        lock bts %rbx, page_code-CODE+FREE(%rip)
        lock decl page_code-CODE+COUNT(%rip)
        xor     %eax, %eax
        jmp     *page_code-CODE+AFTER(%rip)
not_closed:
        mov     $NR_CLOSE, %eax
        jmp     undo
