# The routines that record what a Go program's runtime does: its own syscalls, and what becomes of goroutines.
#
# Built by `python -m stepping.gen_ring` into `ring_probes_code_amd64.py`. They lie behind the ring's page (see
# `ring_probes.py` for the layout) and share its parameters and its ring. Two kinds of places are patched to jumps:
#
#     raw     mov $nr, %eax; syscall      of an assembly function of package runtime (ABI0)
#     entry   push %rbp; mov %rsp, %rbp; sub $n, %rsp      the prologue of a compiled function (ABIInternal)
#
# Each has a thunk of its own, made of the templates below. None uses the stack: at an entry rsp is the caller's, below
# it lies what the kernel may overwrite with a signal frame, and a goroutine's stack may have no room left. What must
# survive is kept in xmm0 to xmm14, which are dead at every call in both ABIs, and which signals and threads keep apart.

        # Parameters of the ring's page.
        .set RING,         0x018
        .set GOID,         0x030
        .set GM,           0x038
        .set INDEX_MASK,   0x040
        .set PROCID,       0x098
        # Parameters of the probes.
        .set CURG,         0x1000       # offsets in m, g and sudog
        .set G0,           0x1008
        .set SCHED_PC,     0x1010
        .set SCHED_BP,     0x1018
        .set WAITREASON,   0x1020
        .set WAITING,      0x1028
        .set SUDOG_C,      0x1030
        .set STARTPC,      0x1038
        .set WAITLINK,     0x1060
        .set TRANSITIONS,  0x1040       # bit old * 16 + new: this change of a goroutine's status is recorded
        .set CODE,         0x2000

        # The ring, and a record: as in ring_amd64.s.
        .set HEAD,         0x000
        .set LIMIT,        0x040
        .set LOST,         0x080
        .set RECORDS,      0x1000
        .set SHIFT,        9
        .set SEQUENCE,     0
        .set START,        8
        .set END,          16
        .set NUMBER,       24
        .set FRAMES,       26
        .set LENGTH0,      28
        .set ARGS,         32
        .set RESULT,       80
        .set GOID_FIELD,   88
        .set G_FIELD,      96
        .set TID_FIELD,    104
        .set STACK,        112
        .set MAX_FRAMES,   16
        .set DATA,         240
        .set MAX_CHANNELS, 32

        .set STATUS,       0x200        # the number of records of a changed status
        .set WAITS,        4            # a goroutine's status

        # Data of a thunk.
        .set RESUME,       0            # where the function goes on
        .set COMMON,       8            # the routine
        .set KIND,         16           # u16: the record's number
        .set RETURN,       20           # u32, raw: how far above rsp the return address lies
        .set PLACE,        24           # raw: the address after the syscall instruction

        .text
        .globl after_raw, entry, status, raw_thunk, raw_number, raw_after, raw_data, raw_end
        .globl entry_thunk, entry_copy, entry_resume, entry_data, entry_end
probe_code:

# After a raw syscall: r11 the thunk's data, rax the result, xmm2 the start time. rcx and r11 are the kernel's.
after_raw:
        movq    %rax, %xmm3
        movq    %rdx, %xmm1
        movq    %rbx, %xmm4
        movq    %r12, %xmm5
        movq    %r13, %xmm6
        movq    %r8, %xmm7
        movq    %r9, %xmm8
        movq    %r10, %xmm9
        mov     probe_code-CODE+RING(%rip), %r13
        mov     HEAD(%r13), %rax
1:      cmp     LIMIT(%r13), %rax
        jae     raw_lost
        lea     1(%rax), %rcx
        lock cmpxchg %rcx, HEAD(%r13)
        jne     1b
        and     probe_code-CODE+INDEX_MASK(%rip), %rax
        shl     $SHIFT, %rax
        lea     RECORDS(%r13,%rax), %r13
        mov     %rdi, ARGS+0(%r13)
        mov     %rsi, ARGS+8(%r13)
        mov     %rdx, ARGS+16(%r13)
        mov     %r10, ARGS+24(%r13)
        mov     %r8, ARGS+32(%r13)
        mov     %r9, ARGS+40(%r13)
        movq    %xmm2, START(%r13)
        movq    %xmm3, RESULT(%r13)
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, END(%r13)
        movzwl  KIND(%r11), %eax
        or      $0x10000, %eax          # one frame, both lengths 0
        mov     %rax, NUMBER(%r13)
        mov     PLACE(%r11), %rax
        mov     %rax, STACK(%r13)
        xor     %eax, %eax
        mov     %rax, GOID_FIELD(%r13)
        mov     %rax, TID_FIELD(%r13)

        # Assembly does not keep g in r14: it is where the runtime keeps it for each thread.
        mov     %fs:-8, %rbx
        mov     %rbx, G_FIELD(%r13)
        test    %rbx, %rbx
        jz      raw_publish
        mov     probe_code-CODE+GM(%rip), %rax
        mov     (%rbx,%rax), %r12
        test    %r12, %r12
        jz      raw_publish
        mov     probe_code-CODE+PROCID(%rip), %rax
        mov     (%r12,%rax), %rax
        mov     %rax, TID_FIELD(%r13)
        mov     probe_code-CODE+CURG(%rip), %rax
        mov     (%r12,%rax), %r12
        test    %r12, %r12
        jz      1f
        mov     probe_code-CODE+GOID(%rip), %rax
        mov     (%r12,%rax), %rax
        mov     %rax, GOID_FIELD(%r13)
1:
        # Where from: the return address, then frame pointers above it, inside g's stack.
        mov     $1, %edx
        cmp     (%rbx), %rsp
        jb      3f
        mov     8(%rbx), %r8
        sub     $16, %r8
        mov     RETURN(%r11), %eax
        lea     (%rsp,%rax), %r9
        cmp     %r8, %r9
        ja      3f
        mov     (%r9), %rax
        mov     %rax, STACK+8(%r13)
        inc     %edx
        mov     %rbp, %r10
        cmp     %r9, %r10
        ja      2f
        cmp     %rsp, %r10              # the function's own frame, whose return address was taken already
        jb      3f
        test    $7, %r10b
        jnz     3f
        mov     (%r10), %r10
2:      cmp     %r9, %r10
        jbe     3f
        cmp     %r8, %r10
        ja      3f
        test    $7, %r10b
        jnz     3f
        mov     8(%r10), %rax
        test    %rax, %rax
        jz      3f
        mov     %rax, STACK(%r13,%rdx,8)
        mov     %r10, %r9
        mov     (%r10), %r10
        inc     %edx
        cmp     $MAX_FRAMES, %edx
        jb      2b
3:      mov     %dl, FRAMES(%r13)
raw_publish:
        mov     %rcx, SEQUENCE(%r13)
raw_done:
        movq    %xmm3, %rax
        movq    %xmm1, %rdx
        movq    %xmm4, %rbx
        movq    %xmm5, %r12
        movq    %xmm6, %r13
        movq    %xmm7, %r8
        movq    %xmm8, %r9
        movq    %xmm9, %r10
        jmp     *RESUME(%r11)
raw_lost:
        lock incq LOST(%r13)
        jmp     raw_done

# At the entry of casgstatus(gp, old, new): rax, ebx, ecx; r12 the thunk's data. r13 and r15 are free at an entry.
        .balign 16
status:
        cmp     $15, %ebx
        ja      1f
        cmp     $15, %ecx
        ja      1f
        mov     %ebx, %r13d
        shl     $4, %r13d
        or      %ecx, %r13d
        lea     probe_code-CODE+TRANSITIONS(%rip), %r15
        bt      %r13, (%r15)
        jc      .Lentry
1:      jmp     *RESUME(%r12)

# At any entry.
entry:
.Lentry:
        movq    %rax, %xmm0
        movq    %rbx, %xmm1
        movq    %rcx, %xmm2
        movq    %rdx, %xmm3
        movq    %rdi, %xmm4
        movq    %rsi, %xmm5
        movq    %r8, %xmm6
        movq    %r9, %xmm7
        movq    %r10, %xmm8
        movq    %r11, %xmm9
        mov     probe_code-CODE+RING(%rip), %r13
        mov     HEAD(%r13), %rax
1:      cmp     LIMIT(%r13), %rax
        jae     entry_lost
        lea     1(%rax), %r11
        lock cmpxchg %r11, HEAD(%r13)
        jne     1b
        and     probe_code-CODE+INDEX_MASK(%rip), %rax
        shl     $SHIFT, %rax
        lea     RECORDS(%r13,%rax), %r13
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        mov     %rax, START(%r13)
        mov     %rax, END(%r13)
        movzwl  KIND(%r12), %r15d
        mov     %r15, NUMBER(%r13)
        movq    %xmm0, %r8
        mov     %r8, ARGS+0(%r13)
        mov     %ebx, %eax
        mov     %rax, ARGS+8(%r13)
        mov     %ecx, %eax
        mov     %rax, ARGS+16(%r13)
        xor     %eax, %eax
        mov     %rax, ARGS+24(%r13)
        mov     %rax, ARGS+32(%r13)
        mov     %rax, ARGS+40(%r13)
        mov     %rax, RESULT(%r13)
        mov     %rax, GOID_FIELD(%r13)
        mov     %rax, TID_FIELD(%r13)
        cmp     $STATUS, %r15d
        jne     2f

        # Which goroutine, why it waits, for which channel, what its function is.
        mov     probe_code-CODE+GOID(%rip), %rax
        mov     (%r8,%rax), %rax
        mov     %rax, RESULT(%r13)
        mov     probe_code-CODE+WAITREASON(%rip), %rax
        movzbl  (%r8,%rax), %eax
        mov     %rax, ARGS+24(%r13)
        mov     probe_code-CODE+STARTPC(%rip), %rax
        mov     (%r8,%rax), %rax
        mov     %rax, ARGS+40(%r13)
        mov     probe_code-CODE+WAITING(%rip), %rax
        mov     (%r8,%rax), %rax
        test    %rax, %rax
        jz      2f
        mov     probe_code-CODE+SUDOG_C(%rip), %rdx
        mov     (%rax,%rdx), %rsi
        mov     %rsi, ARGS+32(%r13)
        cmp     $WAITS, %ecx
        jne     2f
        # It is about to wait: for all of these.
        mov     probe_code-CODE+WAITLINK(%rip), %rdi
        xor     %ecx, %ecx
.Lchannel:
        mov     (%rax,%rdx), %rsi
        mov     %rsi, DATA(%r13,%rcx,8)
        inc     %ecx
        mov     (%rax,%rdi), %rax
        test    %rax, %rax
        jz      .Lchannels
        cmp     $MAX_CHANNELS, %ecx
        jb      .Lchannel
.Lchannels:
        shl     $3, %ecx
        mov     %cx, LENGTH0(%r13)
2:
        # By whom: the thread, and the goroutine that it runs.
        mov     %r14, G_FIELD(%r13)
        xor     %edx, %edx
        mov     probe_code-CODE+GM(%rip), %rax
        mov     (%r14,%rax), %rdi
        test    %rdi, %rdi
        jz      entry_publish
        mov     probe_code-CODE+PROCID(%rip), %rax
        mov     (%rdi,%rax), %rax
        mov     %rax, TID_FIELD(%r13)
        mov     probe_code-CODE+CURG(%rip), %rax
        mov     (%rdi,%rax), %rsi
        test    %rsi, %rsi
        jz      3f
        mov     probe_code-CODE+GOID(%rip), %rax
        mov     (%rsi,%rax), %rax
        mov     %rax, GOID_FIELD(%r13)
3:
        # Where: on the system stack, where the goroutine left its own; else here.
        mov     probe_code-CODE+G0(%rip), %rax
        cmp     (%rdi,%rax), %r14
        jne     4f
        test    %rsi, %rsi
        jz      entry_publish
        mov     (%rsi), %r9
        mov     8(%rsi), %r8
        sub     $16, %r8
        mov     probe_code-CODE+SCHED_PC(%rip), %rax
        mov     (%rsi,%rax), %rcx
        mov     probe_code-CODE+SCHED_BP(%rip), %rax
        mov     (%rsi,%rax), %r10
        jmp     5f
4:      mov     (%r14), %r9
        mov     8(%r14), %r8
        sub     $16, %r8
        cmp     %r9, %rsp
        jb      entry_publish
        cmp     %r8, %rsp
        ja      entry_publish
        mov     (%rsp), %rcx
        mov     %rsp, %r9
        mov     %rbp, %r10
5:      mov     %rcx, STACK(%r13)
        mov     $1, %edx
6:      cmp     %r9, %r10
        jbe     7f
        cmp     %r8, %r10
        ja      7f
        test    $7, %r10b
        jnz     7f
        mov     8(%r10), %rax
        test    %rax, %rax
        jz      7f
        mov     %rax, STACK(%r13,%rdx,8)
        mov     %r10, %r9
        mov     (%r10), %r10
        inc     %edx
        cmp     $MAX_FRAMES, %edx
        jb      6b
7:      mov     %dl, FRAMES(%r13)
entry_publish:
        mov     %r11, SEQUENCE(%r13)
entry_done:
        movq    %xmm0, %rax
        movq    %xmm1, %rbx
        movq    %xmm2, %rcx
        movq    %xmm3, %rdx
        movq    %xmm4, %rdi
        movq    %xmm5, %rsi
        movq    %xmm6, %r8
        movq    %xmm7, %r9
        movq    %xmm8, %r10
        movq    %xmm9, %r11
        jmp     *RESUME(%r12)
entry_lost:
        lock incq LOST(%r13)
        jmp     entry_done

# Templates. What is constant in them is filled in where they are placed.
        .balign 64
raw_thunk:
        movq    %rdx, %xmm1
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        movq    %rax, %xmm2
        movq    %xmm1, %rdx
        mov     $0x7fffffff, %eax       # the number
raw_number:
        syscall
raw_after:
        lea     .Lraw_data(%rip), %r11
        jmp     *.Lraw_data+COMMON(%rip)
        .balign 8
raw_data:
.Lraw_data:
        .skip   32
raw_end:

        .balign 64
entry_thunk:
        lea     .Lentry_data(%rip), %r12
        jmp     *.Lentry_data+COMMON(%rip)
entry_copy:
        .skip   24, 0x90                # the instructions that the jump replaces
entry_resume:
        jmp     *.Lentry_data+24(%rip)    # and after them
        .balign 8
entry_data:
.Lentry_data:
        .skip   32
entry_end:
