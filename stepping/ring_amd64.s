# The routine that records a Go program's syscalls in shared memory; GNU as, AT&T syntax.
#
# Built by `python -m stepping.gen_ring` into `ring_code_amd64.py`; a test builds it again and compares.
# It is placed on a page of its own (layout: `ring_layout.py`), with parameters before it, and entered from two
# places of Go's Syscall6 that are patched to jumps:
#
#     Syscall6:  mov %rsi,%r10    <- jmp before
#                mov %rdi,%rdx
#                mov %rcx,%rsi
#                mov %rbx,%rdi
#                syscall             executed in its own place, so pc is Go code while a thread waits in it
#                cmp $-4095,%rax  <- jmp after
#                jls ok
#
# Nothing is kept in memory between the two: what `before` knows is in registers that the kernel preserves and
# that are dead in Go code there (every register but rsp, rbp, r14, r15 and x15 is, at a call).
#
#     rbx  the number    r12  the start time    r13  cookie ^ rbx ^ r12: says that `before` was run
#
# So the routine needs no stack, can be interrupted by a signal whose handler makes syscalls itself, and a thread
# that waits in the kernel for hours holds no slot and stands in nobody's way: when the patches are taken back
# it goes on in Go's own code. A register set that does not carry the cookie passes through.
#
# A slot is taken only when the call has returned, and only if the reader has freed it; otherwise the call is
# counted as lost. rax (result), rdx (second result), rsp, rbp, r14 (g), r15 and x15 are left as they were.

        # Parameters: offsets from the page's start.
        .set COOKIE,       0x010
        .set RING,         0x018
        .set RESUME_CALL,  0x020        # address of the syscall instruction
        .set RESUME_AFTER, 0x028        # address after the cmp
        .set GOID,         0x030        # offset of goid in g
        .set GM,           0x038        # offset of m in g
        .set INDEX_MASK,   0x040        # number of slots - 1
        .set BUFFER_LIMIT, 0x048        # bytes copied of one buffer
        .set READ_ERRNOS,  0x050        # bit n: a call failed with errno n after it had read a name; 128 bits
        .set PROCID,       0x098        # offset of procid in m
        .set WANTED,       0x0c0        # bit n: call n is recorded; 512 bits
        .set COPIES,       0x100        # per call 4 bytes: two descriptors of what is copied
        .set CODE,         0x900

        # The ring.
        .set HEAD,         0x000
        .set LIMIT,        0x040
        .set LOST,         0x080
        .set RECORDS,      0x1000

        # A record, 512 bytes.
        .set SHIFT,        9
        .set SEQUENCE,     0
        .set START,        8
        .set END,          16
        .set NUMBER,       24           # u16
        .set FRAMES,       26           # u8
        .set LENGTH0,      28           # u16
        .set LENGTH1,      30           # u16
        .set ARGS,         32
        .set RESULT,       80
        .set GOID_FIELD,   88
        .set G_FIELD,      96
        .set TID_FIELD,    104
        .set STACK,        112
        .set DATA,         240
        .set DATA_BYTES,   256
        .set MAX_FRAMES,   16

        .text
        .globl before, after
page_code:
before:
        mov     %rsi, %r10              # what Syscall6 would have done
        mov     %rdi, %rdx
        mov     %rcx, %rsi
        mov     %rbx, %rdi
        cmp     $511, %rax
        ja      1f
        mov     %eax, %ecx
        shr     $6, %ecx
        lea     page_code-CODE+WANTED(%rip), %r11
        mov     (%r11,%rcx,8), %r11
        bt      %rax, %r11
        jnc     1f
        mov     %rax, %rbx
        mov     %rdx, %r13
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, %r12
        mov     %r13, %rdx
        mov     page_code-CODE+COOKIE(%rip), %r13
        xor     %rbx, %r13
        xor     %r12, %r13
        mov     %rbx, %rax
1:      jmp     *page_code-CODE+RESUME_CALL(%rip)

        .balign 16
after:
        mov     page_code-CODE+COOKIE(%rip), %rcx
        xor     %rbx, %rcx
        xor     %r12, %rcx
        cmp     %rcx, %r13
        jne     done
        xor     %r13d, %r13d
        cmp     $511, %rbx              # the cookie held by chance, or by malice
        ja      done

        # Take a slot. The reader moves the limit as it frees them.
        mov     %rax, %rcx
        mov     page_code-CODE+RING(%rip), %r13
        mov     HEAD(%r13), %rax
1:      cmp     LIMIT(%r13), %rax
        jae     lost
        lea     1(%rax), %r11
        lock cmpxchg %r11, HEAD(%r13)
        jne     1b
        and     page_code-CODE+INDEX_MASK(%rip), %rax
        shl     $SHIFT, %rax
        lea     RECORDS(%r13,%rax), %r13

        mov     %r12, START(%r13)
        mov     %rdi, ARGS+0(%r13)
        mov     %rsi, ARGS+8(%r13)
        mov     %rdx, ARGS+16(%r13)
        mov     %r10, ARGS+24(%r13)
        mov     %r8, ARGS+32(%r13)
        mov     %r9, ARGS+40(%r13)
        mov     %rcx, RESULT(%r13)
        mov     %rdx, %r12
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, END(%r13)
        movzwl  %bx, %eax
        or      $0x10000, %eax          # one frame, both lengths 0
        mov     %rax, NUMBER(%r13)
        mov     (%rsp), %rax
        mov     %rax, STACK(%r13)
        mov     %r14, G_FIELD(%r13)

        # Who: g, its goid, its m's thread id. No g in a thread that Go did not make.
        xor     %edx, %edx
        mov     %rdx, GOID_FIELD(%r13)
        mov     %rdx, TID_FIELD(%r13)
        test    %r14, %r14
        jz      copies
        mov     page_code-CODE+GOID(%rip), %rax
        mov     (%r14,%rax), %rax
        mov     %rax, GOID_FIELD(%r13)
        mov     page_code-CODE+GM(%rip), %rax
        mov     (%r14,%rax), %rax
        test    %rax, %rax
        jz      1f
        add     page_code-CODE+PROCID(%rip), %rax
        mov     (%rax), %rax
        mov     %rax, TID_FIELD(%r13)
1:

        # Where from: return addresses by frame pointers, each above the last and inside g's stack [lo, hi).
        mov     $1, %edx
        cmp     (%r14), %rsp
        jb      2f
        mov     8(%r14), %r8
        sub     $16, %r8
        cmp     %r8, %rsp
        ja      2f
        mov     %rsp, %r9
        mov     %rbp, %r10
1:      cmp     %r9, %r10
        jbe     2f
        cmp     %r8, %r10
        ja      2f
        test    $7, %r10b
        jnz     2f
        mov     8(%r10), %rax
        test    %rax, %rax
        jz      2f
        mov     %rax, STACK(%r13,%rdx,8)
        mov     %r10, %r9
        mov     (%r10), %r10
        inc     %edx
        cmp     $MAX_FRAMES, %edx
        jb      1b
2:      mov     %dl, FRAMES(%r13)

        # What the pointers lead to: two descriptors of 16 bits, see ring_layout.py. r8 descriptors, r9 room
        # left, r10 where the record's length goes, rdi where the bytes go.
copies:
        lea     page_code-CODE+COPIES(%rip), %rax
        mov     (%rax,%rbx,4), %r8d
        mov     $DATA_BYTES, %r9d
        lea     LENGTH0(%r13), %r10
        lea     DATA(%r13), %rdi
next_copy:
        test    %r8w, %r8w
        jz      skip
        mov     RESULT(%r13), %rcx
        test    %rcx, %rcx
        jns     readable
        cmp     $-4095, %rcx
        jb      readable                # unsigned: not an errno
        test    $0x100, %r8d            # some arguments may be copied after some errors
        jz      skip
        neg     %rcx
        cmp     $127, %rcx
        ja      skip
        mov     %ecx, %eax
        shr     $6, %eax
        lea     page_code-CODE+READ_ERRNOS(%rip), %rsi
        mov     (%rsi,%rax,8), %rax
        bt      %rcx, %rax
        jnc     skip
readable:
        mov     %r8d, %eax
        and     $7, %eax
        mov     ARGS(%r13,%rax,8), %rsi
        test    %rsi, %rsi
        jz      skip
        mov     %r8d, %eax
        shr     $3, %eax
        and     $3, %eax
        jz      string
        cmp     $2, %eax
        jb      by_result
        je      by_argument
        mov     %r8d, %ecx              # a constant, in units of 8 bytes
        shr     $9, %ecx
        and     $0x3f, %ecx
        shl     $3, %ecx
        jmp     copy_whole
by_argument:
        mov     %r8d, %eax
        shr     $5, %eax
        and     $7, %eax
        mov     ARGS(%r13,%rax,8), %ecx # a socklen_t or int: the upper half is not the kernel's concern
        test    %ecx, %ecx
        js      skip
        jmp     copy
by_result:
        mov     RESULT(%r13), %rcx
        mov     %r8d, %eax
        shr     $5, %eax
        and     $7, %eax
        mov     ARGS(%r13,%rax,8), %rax # a receive may return more than fits
        cmp     %rax, %rcx
        cmova   %rax, %rcx
copy:
        mov     page_code-CODE+BUFFER_LIMIT(%rip), %rax
        cmp     %rax, %rcx
        cmova   %rax, %rcx
copy_whole:
        cmp     %r9, %rcx
        cmova   %r9, %rcx
        mov     %cx, (%r10)
        sub     %rcx, %r9
        rep movsb
        jmp     skip
string:
        xor     %ecx, %ecx
1:      cmp     %r9, %rcx
        jae     2f
        movzbl  (%rsi,%rcx), %eax
        test    %eax, %eax
        jz      2f
        mov     %al, (%rdi,%rcx)
        inc     %ecx
        jmp     1b
2:      mov     %cx, (%r10)
        sub     %rcx, %r9
        add     %rcx, %rdi
skip:
        add     $2, %r10
        shr     $16, %r8d
        jnz     next_copy

        mov     RESULT(%r13), %rax
        mov     %r12, %rdx
        mov     %r11, SEQUENCE(%r13)    # publishes the record: index + 1
done:
        cmp     $0xfffffffffffff001, %rax       # what Syscall6 would have done
        jmp     *page_code-CODE+RESUME_AFTER(%rip)
lost:
        lock incq LOST(%r13)
        mov     %rcx, %rax
        jmp     done
