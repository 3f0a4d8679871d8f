"""The one table of Linux syscalls, up to Linux 6.19. Grammar of a row: `stepping.syscalls.model`.

Rows are parsed one by one, when first asked for, so that importing the table costs nothing to speak of.
An argument's name is also the attribute by which a server's method reads it, so no argument may be called
like one of the attributes that every call has: pid, tid, name, args, id, session, value and the like.

Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h, and each call's man page.
"""

from collections.abc import Iterator, Mapping

from stepping.syscalls.model import Arch, Syscall, Sysno
from stepping.syscalls.parse import index_rows, parse_number, parse_row

_ROWS = """
# Files: reading and writing
read                      0   63  file     wait  fd:fd buf:out[count;ret] count:size -> bytes
write                     1   64  file     wait  fd:fd buf:in[count] count:size -> bytes
pread64                  17   67  file     wait  fd:fd buf:out[count;ret] count:size offset:long -> bytes
pwrite64                 18   68  file     wait  fd:fd buf:in[count] count:size offset:long -> bytes
readv                    19   65  file     wait  fd:fd iov:iovout[iovcnt;ret] iovcnt:int -> bytes
writev                   20   66  file     wait  fd:fd iov:iovin[iovcnt] iovcnt:int -> bytes
preadv                  295   69  file     wait  fd:fd iov:iovout[iovcnt;ret] iovcnt:int offset:long offset_high:size/ignored -> bytes
pwritev                 296   70  file     wait  fd:fd iov:iovin[iovcnt] iovcnt:int offset:long offset_high:size/ignored -> bytes
preadv2                 327  286  file     wait  fd:fd iov:iovout[iovcnt;ret] iovcnt:int offset:long offset_high:size/ignored flags:uint/rwf_flags -> bytes
pwritev2                328  287  file     wait  fd:fd iov:iovin[iovcnt] iovcnt:int offset:long offset_high:size/ignored flags:uint/rwf_flags -> bytes
lseek                     8   62  file     -     fd:fd offset:long whence:int/whence -> int
sendfile                 40   71  file     wait  out_fd:fd in_fd:fd offset:inout[8]/u64_box count:size -> bytes
copy_file_range         326  285  file     -     fd_in:fd off_in:inout[8]/u64_box fd_out:fd off_out:inout[8]/u64_box len:size flags:uint/hex -> bytes
splice                  275   76  file     wait  fd_in:fd off_in:inout[8]/u64_box fd_out:fd off_out:inout[8]/u64_box len:size flags:uint/splice_flags -> bytes
tee                     276   77  file     wait  fd_in:fd fd_out:fd len:size flags:uint/splice_flags -> bytes
vmsplice                278   75  file     wait  fd:fd iov:iovin[nr_segs] nr_segs:size flags:uint/splice_flags -> bytes bound
readahead               187  213  file     -     fd:fd offset:long count:size -> none
fadvise64               221  223  file     -     fd:fd offset:long len:long advice:int/fadvice -> none
cachestat               451  451  file     -     fd:fd range:in[16]/u64_pair cstat:out[40]/u64_array flags:uint/hex -> none

# Files: descriptors
open                      2    -  file     wait  path:path flags:int/open_flags mode:uint/open_mode -> fd
openat                  257   56  file     wait  dirfd:dirfd path:path flags:int/open_flags mode:uint/open_mode -> fd
openat2                 437  437  file     wait  dirfd:dirfd path:path how:in[size]/open_how size:size -> fd
creat                    85    -  file     wait  path:path mode:uint/mode -> fd
close                     3   57  file     -     fd:fd -> none
close_range             436  436  file     -     first:uint last:uint flags:uint/close_range_flags -> none
dup                      32   23  file     -     oldfd:fd -> fd
dup2                     33    -  file     -     oldfd:fd newfd:fd -> fd
dup3                    292   24  file     -     oldfd:fd newfd:fd flags:int/fd_flags_at_birth -> fd
fcntl                    72   25  file     wait  fd:fd cmd:int/fcntl_cmd arg:reqarg[cmd] -> int
ioctl                    16   29  file     wait  fd:fd request:uint/ioctl_request arg:reqarg[request] -> int
flock                    73   32  file     wait  fd:fd operation:int/flock_operation -> none
pipe                     22    -  file     -     fds:out[8]/fd_pair -> none
pipe2                   293   59  file     -     fds:out[8]/fd_pair flags:int/fd_flags_at_birth -> none
memfd_create            319  279  file     -     label:str flags:uint/memfd_flags -> fd
memfd_secret            447  447  file     -     flags:uint/fd_flags_at_birth -> fd bound
name_to_handle_at       303  264  file     -     dirfd:dirfd path:path handle:inout[8+*handle]/file_handle mount_id:inout[8]/i32_box flags:int/handle_flags -> none
open_by_handle_at       304  265  file     wait  mount_fd:dirfd handle:in[8+*handle]/file_handle flags:int/open_flags -> fd

# Files: names
access                   21    -  file     -     path:path mode:int/access_mode -> none
faccessat               269   48  file     -     dirfd:dirfd path:path mode:int/access_mode -> none
faccessat2              439  439  file     -     dirfd:dirfd path:path mode:int/access_mode flags:int/faccess_flags -> none
chdir                    80   49  file     -     path:path -> none
fchdir                   81   50  file     -     fd:fd -> none
chroot                  161   51  file     -     path:path -> none
getcwd                   79   17  file     -     buf:out[size;ret] size:size -> bytes
rename                   82    -  file     -     oldpath:path newpath:path -> none
renameat                264   38  file     -     olddirfd:dirfd oldpath:path newdirfd:dirfd newpath:path -> none
renameat2               316  276  file     -     olddirfd:dirfd oldpath:path newdirfd:dirfd newpath:path flags:uint/rename_flags -> none
mkdir                    83    -  file     -     path:path mode:uint/mode -> none
mkdirat                 258   34  file     -     dirfd:dirfd path:path mode:uint/mode -> none
rmdir                    84    -  file     -     path:path -> none
mknod                   133    -  file     -     path:path mode:uint/file_mode dev:uint/dev -> none
mknodat                 259   33  file     -     dirfd:dirfd path:path mode:uint/file_mode dev:uint/dev -> none
link                     86    -  file     -     oldpath:path newpath:path -> none
linkat                  265   37  file     -     olddirfd:dirfd oldpath:path newdirfd:dirfd newpath:path flags:int/at_flags -> none
unlink                   87    -  file     -     path:path -> none
unlinkat                263   35  file     -     dirfd:dirfd path:path flags:int/unlink_flags -> none
symlink                  88    -  file     -     target:str linkpath:path -> none
symlinkat               266   36  file     -     target:str newdirfd:dirfd linkpath:path -> none
readlink                 89    -  file     -     path:path buf:out[bufsiz;ret] bufsiz:int -> bytes
readlinkat              267   78  file     -     dirfd:dirfd path:path buf:out[bufsiz;ret] bufsiz:int -> bytes
umask                    95  166  file     -     mask:uint/mode -> int
getdents                 78    -  file     -     fd:fd dirent:out[count;ret]/dirents32 count:uint -> bytes
getdents64              217   61  file     -     fd:fd dirent:out[count;ret]/dirents count:uint -> bytes

# Files: metadata
stat                      4    -  file     -     path:path statbuf:out[144|128]/stat -> none
fstat                     5   80  file     -     fd:fd statbuf:out[144|128]/stat -> none
lstat                     6    -  file     -     path:path statbuf:out[144|128]/stat -> none
newfstatat              262   79  file     -     dirfd:dirfd path:path statbuf:out[144|128]/stat flags:int/at_flags -> none
statx                   332  291  file     -     dirfd:dirfd path:path flags:int/statx_flags mask:uint/statx_mask statxbuf:out[256]/statx -> none
statfs                  137   43  file     -     path:path buf:out[120]/statfs -> none
fstatfs                 138   44  file     -     fd:fd buf:out[120]/statfs -> none
ustat                   136    -  file     -     dev:uint/dev ubuf:out[32] -> none
chmod                    90    -  file     -     path:path mode:uint/mode -> none
fchmod                   91   52  file     -     fd:fd mode:uint/mode -> none
fchmodat                268   53  file     -     dirfd:dirfd path:path mode:uint/mode -> none
fchmodat2               452  452  file     -     dirfd:dirfd path:path mode:uint/mode flags:uint/at_flags -> none
chown                    92    -  file     -     path:path owner:int group:int -> none
fchown                   93   55  file     -     fd:fd owner:int group:int -> none
lchown                   94    -  file     -     path:path owner:int group:int -> none
fchownat                260   54  file     -     dirfd:dirfd path:path owner:int group:int flags:int/at_flags -> none
truncate                 76   45  file     -     path:path length:long -> none
ftruncate                77   46  file     -     fd:fd length:long -> none
fallocate               285   47  file     -     fd:fd mode:int/fallocate_mode offset:long len:long -> none
utime                   132    -  file     -     path:path times:in[16]/utimbuf -> none
utimes                  235    -  file     -     path:path times:in[32]/timevals -> none
futimesat               261    -  file     -     dirfd:dirfd path:path times:in[32]/timevals -> none
utimensat               280   88  file     -     dirfd:dirfd path:path times:in[32]/utimens flags:int/at_flags -> none
file_getattr            468  468  file     -     dirfd:dirfd path:path attr:out[usize]/hexdump usize:size at_flags:uint/at_flags -> none
file_setattr            469  469  file     -     dirfd:dirfd path:path attr:in[usize]/hexdump usize:size at_flags:uint/at_flags -> none
setxattr                188    5  file     -     path:path attribute:str data:in[size] size:size flags:int/xattr_flags -> none
lsetxattr               189    6  file     -     path:path attribute:str data:in[size] size:size flags:int/xattr_flags -> none
fsetxattr               190    7  file     -     fd:fd attribute:str data:in[size] size:size flags:int/xattr_flags -> none
getxattr                191    8  file     -     path:path attribute:str data:out[size;ret] size:size -> bytes
lgetxattr               192    9  file     -     path:path attribute:str data:out[size;ret] size:size -> bytes
fgetxattr               193   10  file     -     fd:fd attribute:str data:out[size;ret] size:size -> bytes
listxattr               194   11  file     -     path:path list:out[size;ret] size:size -> bytes
llistxattr              195   12  file     -     path:path list:out[size;ret] size:size -> bytes
flistxattr              196   13  file     -     fd:fd list:out[size;ret] size:size -> bytes
removexattr             197   14  file     -     path:path attribute:str -> none
lremovexattr            198   15  file     -     path:path attribute:str -> none
fremovexattr            199   16  file     -     fd:fd attribute:str -> none
setxattrat              463  463  file     -     dirfd:dirfd path:path at_flags:uint/at_flags attribute:str params:in[size]/hexdump size:size -> none bound
getxattrat              464  464  file     -     dirfd:dirfd path:path at_flags:uint/at_flags attribute:str params:in[size]/hexdump size:size -> bytes bound
listxattrat             465  465  file     -     dirfd:dirfd path:path at_flags:uint/at_flags list:out[size;ret] size:size -> bytes
removexattrat           466  466  file     -     dirfd:dirfd path:path at_flags:uint/at_flags attribute:str -> none
sync                    162   81  file     -     -> none
syncfs                  306  267  file     -     fd:fd -> none
fsync                    74   82  file     -     fd:fd -> none
fdatasync                75   83  file     -     fd:fd -> none
sync_file_range         277   84  file     -     fd:fd offset:long nbytes:long flags:uint/sync_range_flags -> none

# Files: waiting and events
poll                      7    -  file     wait  fds:inout[nfds*8]/pollfds nfds:uint timeout:int -> int
ppoll                   271   73  file     wait  fds:inout[nfds*8]/pollfds nfds:uint timeout:inout[16]/timespec sigmask:in[sigsetsize]/sigset sigsetsize:size -> int
select                   23    -  file     wait  nfds:int readfds:inout[nfds/8]/fd_set writefds:inout[nfds/8]/fd_set exceptfds:inout[nfds/8]/fd_set timeout:inout[16]/timeval -> int
pselect6                270   72  file     wait  nfds:int readfds:inout[nfds/8]/fd_set writefds:inout[nfds/8]/fd_set exceptfds:inout[nfds/8]/fd_set timeout:inout[16]/timespec sigmask:sigref/sigset -> int
epoll_create            213    -  file     -     size:int -> fd
epoll_create1           291   20  file     -     flags:int/epoll_flags -> fd
epoll_ctl               233   21  file     -     epfd:fd op:int/epoll_op fd:fd event:in[12|16]/epoll_event -> none
epoll_wait              232    -  file     wait  epfd:fd events:out[maxevents*12|16;ret*12|16]/epoll_events maxevents:int timeout:int -> int
epoll_pwait             281   22  file     wait  epfd:fd events:out[maxevents*12|16;ret*12|16]/epoll_events maxevents:int timeout:int sigmask:in[sigsetsize]/sigset sigsetsize:size -> int
epoll_pwait2            441  441  file     wait  epfd:fd events:out[maxevents*12|16;ret*12|16]/epoll_events maxevents:int timeout:in[16]/timespec sigmask:in[sigsetsize]/sigset sigsetsize:size -> int
epoll_ctl_old           214    -  file     -     -> int bound
epoll_wait_old          215    -  file     -     -> int bound
eventfd                 284    -  file     -     initval:uint -> fd
eventfd2                290   19  file     -     initval:uint flags:int/eventfd_flags -> fd
signalfd                282    -  file     -     fd:fd mask:in[sizemask]/sigset sizemask:size -> fd
signalfd4               289   74  file     -     fd:fd mask:in[sizemask]/sigset sizemask:size flags:int/signalfd_flags -> fd
timerfd_create          283   85  file     -     clockid:int/clockid flags:int/timerfd_create_flags -> fd
timerfd_settime         286   86  file     -     fd:fd flags:int/timerfd_flags new_value:in[32]/itimerspec old_value:out[32]/itimerspec -> none
timerfd_gettime         287   87  file     -     fd:fd curr_value:out[32]/itimerspec -> none
inotify_init            253    -  file     -     -> fd
inotify_init1           294   26  file     -     flags:int/inotify_flags -> fd
inotify_add_watch       254   27  file     -     fd:fd path:path mask:uint/inotify_mask -> int
inotify_rm_watch        255   28  file     -     fd:fd wd:int -> none
fanotify_init           300  262  file     -     flags:uint/fanotify_flags event_f_flags:uint/open_flags -> fd
fanotify_mark           301  263  file     -     fd:fd flags:uint/fanotify_mark_flags mask:size/fanotify_mask dirfd:dirfd path:path -> none

# Files: asynchronous (rings and control blocks live in the caller's memory)
io_setup                206    0  file     -     nr_events:uint ctxp:inout[8]/u64_box -> none bound
io_destroy              207    1  file     -     ctx:size/hex -> none bound
io_submit               209    2  file     -     ctx:size/hex nr:long iocbpp:ptr -> int bound
io_cancel               210    3  file     -     ctx:size/hex iocb:ptr completed:ptr -> none bound
io_getevents            208    4  file     wait  ctx:size/hex min_nr:long nr:long events:out[nr*32;ret*32]/hexdump timeout:in[16]/timespec -> int bound
io_pgetevents           333  292  file     wait  ctx:size/hex min_nr:long nr:long events:out[nr*32;ret*32]/hexdump timeout:in[16]/timespec sigmask:sigref/sigset -> int bound
io_uring_setup          425  425  file     -     entries:uint params:inout[120]/hexdump -> fd bound
io_uring_enter          426  426  file     wait  fd:fd to_submit:uint min_complete:uint flags:uint/hex arg:ptr argsz:size -> int bound
io_uring_register       427  427  file     -     fd:fd opcode:uint arg:ptr nr_args:uint -> int bound

# Message queues
mq_open                 240  180  file     -     queue:str oflag:int/open_flags mode:uint/open_mode attr:in[64]/mq_attr -> fd
mq_unlink               241  181  file     -     queue:str -> none
mq_timedsend            242  182  file     wait  mqdes:fd msg:in[len] len:size prio:uint timeout:in[16]/timespec -> none
mq_timedreceive         243  183  file     wait  mqdes:fd msg:out[len;ret] len:size prio:out[4]/u32_box timeout:in[16]/timespec -> bytes
mq_notify               244  184  file     -     mqdes:fd sevp:in[64]/sigevent -> none bound
mq_getsetattr           245  185  file     -     mqdes:fd newattr:in[64]/mq_attr oldattr:out[64]/mq_attr -> none

# Sockets
socket                   41  198  net      -     family:int/socket_family type:int/socket_type protocol:int/socket_protocol -> fd
socketpair               53  199  net      -     family:int/socket_family type:int/socket_type protocol:int/socket_protocol fds:out[8]/fd_pair -> none
bind                     49  200  net      -     fd:fd addr:in[addrlen]/sockaddr addrlen:int -> none
listen                   50  201  net      -     fd:fd backlog:int -> none
accept                   43  202  net      wait  fd:fd addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/i32_box -> fd
accept4                 288  242  net      wait  fd:fd addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/i32_box flags:int/socket_flags -> fd
connect                  42  203  net      wait  fd:fd addr:in[addrlen]/sockaddr addrlen:int -> none
getsockname              51  204  net      -     fd:fd addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/i32_box -> none
getpeername              52  205  net      -     fd:fd addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/i32_box -> none
sendto                   44  206  net      wait  fd:fd buf:in[len] len:size flags:int/msg_flags addr:in[addrlen]/sockaddr addrlen:int -> bytes
recvfrom                 45  207  net      wait  fd:fd buf:out[len;ret] len:size flags:int/msg_flags addr:out[*addrlen;*addrlen]/sockaddr addrlen:inout[4]/i32_box -> bytes
sendmsg                  46  211  net      wait  fd:fd msg:msgin flags:int/msg_flags -> bytes
recvmsg                  47  212  net      wait  fd:fd msg:msgout flags:int/msg_flags -> bytes
sendmmsg                307  269  net      wait  fd:fd msgvec:mmsgin[vlen] vlen:uint flags:int/msg_flags -> int
recvmmsg                299  243  net      wait  fd:fd msgvec:mmsgout[vlen] vlen:uint flags:int/msg_flags timeout:inout[16]/timespec -> int
setsockopt               54  208  net      -     fd:fd level:int/socket_level optname:int/socket_option optval:in[optlen]/socket_value optlen:int -> none
getsockopt               55  209  net      -     fd:fd level:int/socket_level optname:int/socket_option optval:inout[*optlen;*optlen]/socket_value optlen:inout[4]/i32_box -> none
shutdown                 48  210  net      -     fd:fd how:int/shutdown_how -> none

# Processes
fork                     57    -  process  -     -> int bound
vfork                    58    -  process  wait  -> int bound
# clone: on arm64, tls comes before child_tid.
clone                    56  220  process  -     flags:size/clone_flags stack:ptr parent_tid:ptr child_tid:ptr tls:ptr -> int bound only flags&0x10000=0
clone3                  435  435  process  -     cl_args:in[size]/clone_args size:size -> int bound
execve                   59  221  process  -     path:path argv:strv envp:strv/environment -> none bound
execveat                322  281  process  -     dirfd:dirfd path:path argv:strv envp:strv/environment flags:int/at_flags -> none bound
wait4                    61  260  process  wait  process:int status:out[4]/wait_status options:int/wait_options rusage:out[144]/rusage -> int
waitid                  247   95  process  wait  idtype:int/id_type who:int infop:out[128]/siginfo options:int/wait_options rusage:out[144]/rusage -> int
kill                     62  129  process  -     process:int sig:int/signal -> none
rt_sigqueueinfo         129  138  process  -     process:int sig:int/signal info:in[128]/siginfo -> none
pidfd_open              434  434  process  -     process:int flags:uint/pidfd_flags -> fd
pidfd_send_signal       424  424  process  -     pidfd:fd sig:int/signal info:in[128]/siginfo flags:uint/hex -> none
pidfd_getfd             438  438  process  -     pidfd:fd targetfd:int flags:uint/hex -> fd
process_mrelease        448  448  process  -     pidfd:fd flags:uint/hex -> none
ptrace                  101  117  process  -     request:long/ptrace_request process:int addr:ptr data:ptr -> int bound
process_vm_readv        310  270  process  -     process:int local_iov:iovout[liovcnt;ret] liovcnt:size remote_iov:in[riovcnt*16]/hexdump riovcnt:size flags:size/hex -> bytes bound
process_vm_writev       311  271  process  -     process:int local_iov:iovin[liovcnt] liovcnt:size remote_iov:in[riovcnt*16]/hexdump riovcnt:size flags:size/hex -> bytes bound
process_madvise         440  440  process  -     pidfd:fd iov:in[vlen*16]/hexdump vlen:size advice:int/madvice flags:uint/hex -> bytes bound
kcmp                    312  272  process  -     pid1:int pid2:int type:int idx1:size idx2:size -> int bound
unshare                 272   97  process  -     flags:size/clone_flags -> none bound
setns                   308  268  process  -     fd:fd nstype:int/clone_flags -> none bound

# Identity, limits, sessions
getuid                  102  174  identity -     -> int
geteuid                 107  175  identity -     -> int
getgid                  104  176  identity -     -> int
getegid                 108  177  identity -     -> int
getppid                 110  173  identity -     -> int
getpgrp                 111    -  identity -     -> int
getpgid                 121  155  identity -     process:int -> int
setpgid                 109  154  identity -     process:int pgid:int -> none
getsid                  124  156  identity -     process:int -> int
setsid                  112  157  identity -     -> int
getgroups               115  158  identity -     size:int list:out[size*4;ret*4]/u32_array -> int
setgroups               116  159  identity -     size:int list:in[size*4]/u32_array -> none
setuid                  105  146  identity -     uid:int -> none
setgid                  106  144  identity -     gid:int -> none
setreuid                113  145  identity -     ruid:int euid:int -> none
setregid                114  143  identity -     rgid:int egid:int -> none
setresuid               117  147  identity -     ruid:int euid:int suid:int -> none
setresgid               119  149  identity -     rgid:int egid:int sgid:int -> none
getresuid               118  148  identity -     ruid:out[4]/u32_box euid:out[4]/u32_box suid:out[4]/u32_box -> none
getresgid               120  150  identity -     rgid:out[4]/u32_box egid:out[4]/u32_box sgid:out[4]/u32_box -> none
setfsuid                122  151  identity -     uid:int -> int
setfsgid                123  152  identity -     gid:int -> int
capget                  125   90  identity -     hdr:inout[8]/cap_header data:inout[24]/cap_data -> none
capset                  126   91  identity -     hdr:inout[8]/cap_header data:in[24]/cap_data -> none
getrlimit                97  163  identity -     resource:int/rlimit_resource rlim:out[16]/rlimit -> none
setrlimit               160  164  identity -     resource:int/rlimit_resource rlim:in[16]/rlimit -> none
prlimit64               302  261  identity -     process:int resource:int/rlimit_resource new_limit:in[16]/rlimit old_limit:out[16]/rlimit -> none
uname                    63  160  identity -     buf:out[390]/utsname -> none
sethostname             170  161  identity -     hostname:in[len] len:int -> none
setdomainname           171  162  identity -     domain:in[len] len:int -> none
lsm_get_self_attr       459  459  identity -     attr:uint ctx:out[*size;*size]/hexdump size:inout[4]/u32_box flags:uint/hex -> int
lsm_set_self_attr       460  460  identity -     attr:uint ctx:in[size]/hexdump size:uint flags:uint/hex -> none
lsm_list_modules        461  461  identity -     ids:out[*size;*size]/u64_array size:inout[4]/u32_box flags:uint/hex -> int

# The system as a whole
sysinfo                  99  179  system   -     info:out[112]/sysinfo -> none
mount                   165   40  system   -     source:str target:path fstype:str flags:size/mount_flags data:str -> none
umount2                 166   39  system   -     target:path flags:int/umount_flags -> none
pivot_root              155   41  system   -     new_root:path put_old:path -> none
open_tree               428  428  system   -     dirfd:dirfd path:path flags:uint/open_tree_flags -> fd
open_tree_attr          467  467  system   -     dirfd:dirfd path:path flags:uint/open_tree_flags attr:in[usize]/mount_attr usize:size -> fd
move_mount              429  429  system   -     from_dirfd:dirfd from_path:path to_dirfd:dirfd to_path:path flags:uint/hex -> none
fsopen                  430  430  system   -     fsname:str flags:uint/hex -> fd
fsconfig                431  431  system   -     fd:fd cmd:uint/fsconfig_cmd key:str data:ptr aux:int -> none bound
fsmount                 432  432  system   -     fd:fd flags:uint/hex attr_flags:uint/mount_attr_flags -> fd
fspick                  433  433  system   -     dirfd:dirfd path:path flags:uint/hex -> fd
mount_setattr           442  442  system   -     dirfd:dirfd path:path flags:uint/at_flags attr:in[usize]/mount_attr usize:size -> none
statmount               457  457  system   -     req:in[*req]/hexdump buf:out[bufsize;*buf]/hexdump bufsize:size flags:uint/hex -> none
listmount               458  458  system   -     req:in[*req]/hexdump mnt_ids:out[nr_mnt_ids*8;ret*8]/u64_array nr_mnt_ids:size flags:uint/hex -> int
listns                  470  470  system   -     req:in[*req]/hexdump ns_ids:out[nr_ns_ids*8;ret*8]/u64_array nr_ns_ids:size flags:uint/hex -> int
swapon                  167  224  system   -     path:path flags:int/hex -> none
swapoff                 168  225  system   -     path:path -> none
reboot                  169  142  system   -     magic1:uint/hex magic2:uint/hex cmd:uint/hex arg:ptr -> none bound
syslog                  103  116  system   wait  type:int buf:out[len;ret] len:int -> int
acct                    163   89  system   -     path:path -> none
quotactl                179   60  system   -     cmd:uint/hex special:path owner:int addr:ptr -> none bound
quotactl_fd             443  443  system   -     fd:fd cmd:uint/hex owner:int addr:ptr -> none bound
init_module             175  105  system   -     image:in[len] len:size params:str -> none
finit_module            313  273  system   -     fd:fd params:str flags:int/hex -> none
delete_module           176  106  system   -     module:str flags:uint/fd_flags_at_birth -> none
kexec_load              246  104  system   -     entry:ptr nr_segments:size segments:in[nr_segments*32]/hexdump flags:size/hex -> none bound
kexec_file_load         320  294  system   -     kernel_fd:fd initrd_fd:fd cmdline_len:size cmdline:in[cmdline_len] flags:size/hex -> none
vhangup                 153   58  system   -     -> none
lookup_dcookie          212   18  system   -     cookie:size buf:out[len;ret] len:size -> bytes
settimeofday            164  170  system   -     tv:in[16]/timeval tz:in[8]/timezone -> none
clock_settime           227  112  system   -     clockid:int/clockid tp:in[16]/timespec -> none
adjtimex                159  171  system   -     buf:inout[208]/timex -> int
clock_adjtime           305  266  system   -     clockid:int/clockid buf:inout[208]/timex -> int
add_key                 248  217  system   -     type:str description:str payload:in[plen] plen:size keyring:int/keyring -> int
request_key             249  218  system   wait  type:str description:str callout_info:str keyring:int/keyring -> int
keyctl                  250  219  system   wait  operation:int arg2:size arg3:size arg4:size arg5:size -> int bound
bpf                     321  280  system   -     cmd:int attr:inout[size]/hexdump size:uint -> int bound
perf_event_open         298  241  system   -     attr:in[*attr@4]/hexdump process:int cpu:int group_fd:fd flags:size/hex -> fd bound
userfaultfd             323  282  system   -     flags:int/fd_flags_at_birth -> fd bound
landlock_create_ruleset 444  444  system   -     attr:in[size]/hexdump size:size flags:uint/hex -> fd bound
landlock_add_rule       445  445  system   -     ruleset_fd:fd rule_type:int rule_attr:ptr flags:uint/hex -> none bound
landlock_restrict_self  446  446  system   -     ruleset_fd:fd flags:uint/hex -> none bound
shmget                   29  194  system   -     key:int/hex size:size shmflg:int/ipc_flags -> int
shmat                    30  196  system   -     shmid:int shmaddr:ptr shmflg:int/shmat_flags -> ptr bound
shmdt                    67  197  system   -     shmaddr:ptr -> none bound
shmctl                   31  195  system   -     shmid:int cmd:int/ipc_cmd buf:reqarg[cmd] -> int
semget                   64  190  system   -     key:int/hex nsems:int semflg:int/ipc_flags -> int
semop                    65  193  system   wait  semid:int sops:in[nsops*6]/sembufs nsops:size -> none
semtimedop              220  192  system   wait  semid:int sops:in[nsops*6]/sembufs nsops:size timeout:in[16]/timespec -> none
semctl                   66  191  system   -     semid:int semnum:int cmd:int/ipc_cmd arg:reqarg[cmd] -> int
msgget                   68  186  system   -     key:int/hex msgflg:int/ipc_flags -> int
msgsnd                   69  189  system   wait  msqid:int msgp:in[8+msgsz]/msgbuf msgsz:size msgflg:int/ipc_flags -> none
msgrcv                   70  188  system   wait  msqid:int msgp:out[8+msgsz;8+ret]/msgbuf msgsz:size msgtyp:long msgflg:int/ipc_flags -> bytes
msgctl                   71  187  system   -     msqid:int cmd:int/ipc_cmd buf:reqarg[cmd] -> int

# The address space
mmap                      9  222  memory   -     addr:ptr length:size prot:int/prot flags:int/mmap_flags fd:fd offset:size/hex -> ptr bound only flags&0x20=0
munmap                   11  215  memory   -     addr:ptr length:size -> none
mprotect                 10  226  memory   -     addr:ptr length:size prot:int/prot -> none
mremap                   25  216  memory   -     old_address:ptr old_size:size new_size:size flags:int/mremap_flags new_address:ptr -> ptr
madvise                  28  233  memory   -     addr:ptr length:size advice:int/madvice -> none
msync                    26  227  memory   -     addr:ptr length:size flags:int/msync_flags -> none
mincore                  27  232  memory   -     addr:ptr length:size vec:ptr -> none
mlock                   149  228  memory   -     addr:ptr length:size -> none
mlock2                  325  284  memory   -     addr:ptr length:size flags:uint/hex -> none
munlock                 150  229  memory   -     addr:ptr length:size -> none
mlockall                151  230  memory   -     flags:int/mlockall_flags -> none
munlockall              152  231  memory   -     -> none
mseal                   462  462  memory   -     addr:ptr length:size flags:size/hex -> none
brk                      12  214  memory   -     addr:ptr -> ptr
remap_file_pages        216  234  memory   -     addr:ptr size:size prot:int/prot pgoff:size flags:int/mmap_flags -> none
pkey_mprotect           329  288  memory   -     addr:ptr length:size prot:int/prot pkey:int -> none
pkey_alloc              330  289  memory   -     flags:uint/hex access_rights:uint/hex -> int
pkey_free               331  290  memory   -     pkey:int -> none
mbind                   237  235  memory   -     addr:ptr length:size mode:int nodemask:ptr maxnode:size flags:uint/hex -> none
set_mempolicy           238  237  memory   -     mode:int nodemask:ptr maxnode:size -> none
get_mempolicy           239  236  memory   -     mode:ptr nodemask:ptr maxnode:size addr:ptr flags:size/hex -> none
migrate_pages           256  238  memory   -     process:int maxnode:size old_nodes:ptr new_nodes:ptr -> int
move_pages              279  239  memory   -     process:int count:size pages:ptr nodes:ptr status:ptr flags:int/hex -> int
set_mempolicy_home_node 450  450  memory   -     addr:ptr length:size home_node:size flags:size/hex -> none
map_shadow_stack        453  453  memory   -     addr:ptr size:size flags:uint/hex -> ptr
uselib                  134    -  memory   -     library:path -> none

# Threads
gettid                  186  178  thread   -     -> int
getpid                   39  172  thread   -     -> int
exit                     60   93  thread   -     status:int -> none
exit_group              231   94  thread   -     status:int -> none
set_tid_address         218   96  thread   -     tidptr:ptr -> int
set_robust_list         273   99  thread   -     head:ptr len:size -> none
get_robust_list         274  100  thread   -     process:int head:out[8]/u64_box len:out[8]/u64_box -> none
futex                   202   98  thread   wait  uaddr:ptr op:int/futex_op val:uint timeout:reqarg[op] uaddr2:ptr val3:uint/hex -> int
futex_waitv             449  449  thread   wait  waiters:in[nr_futexes*24]/hexdump nr_futexes:uint flags:uint/hex timeout:in[16]/timespec clockid:int/clockid -> int
futex_wake              454  454  thread   -     uaddr:ptr mask:size/hex nr:int flags:uint/hex -> int
futex_wait              455  455  thread   wait  uaddr:ptr val:size mask:size/hex flags:uint/hex timeout:in[16]/timespec clockid:int/clockid -> int
futex_requeue           456  456  thread   -     waiters:in[48]/hexdump flags:uint/hex nr_wake:int nr_requeue:int -> int
membarrier              324  283  thread   -     cmd:int/membarrier_cmd flags:uint/hex cpu_id:int -> int
rseq                    334  293  thread   -     rseq:ptr rseq_len:uint flags:int/hex sig:uint/hex -> none
rseq_slice_yield        471  471  thread   -     -> int
sched_yield              24  124  thread   -     -> none
sched_setaffinity       203  122  thread   -     process:int len:uint mask:in[len]/cpu_set -> none
sched_getaffinity       204  123  thread   -     process:int len:uint mask:out[len;ret]/cpu_set -> int
sched_setparam          142  118  thread   -     process:int param:in[4]/i32_box -> none
sched_getparam          143  121  thread   -     process:int param:out[4]/i32_box -> none
sched_setscheduler      144  119  thread   -     process:int policy:int/sched_policy param:in[4]/i32_box -> none
sched_getscheduler      145  120  thread   -     process:int -> int
sched_get_priority_max  146  125  thread   -     policy:int/sched_policy -> int
sched_get_priority_min  147  126  thread   -     policy:int/sched_policy -> int
sched_rr_get_interval   148  127  thread   -     process:int tp:out[16]/timespec -> none
sched_setattr           314  274  thread   -     process:int attr:in[*attr]/hexdump flags:uint/hex -> none
sched_getattr           315  275  thread   -     process:int attr:out[size]/hexdump size:uint flags:uint/hex -> none
getpriority             140  141  thread   -     which:int who:int -> int
setpriority             141  140  thread   -     which:int who:int prio:int -> none
ioprio_get              252   31  thread   -     which:int who:int -> int
ioprio_set              251   30  thread   -     which:int who:int ioprio:int/hex -> none
prctl                   157  167  thread   -     option:int/prctl_option arg2:reqarg[option] arg3:size/hex arg4:size/hex arg5:size/hex -> int
arch_prctl              158    -  thread   -     code:int/arch_prctl_code addr:ptr -> none
seccomp                 317  277  thread   -     operation:uint/seccomp_operation flags:uint/hex params:ptr -> int
personality             135   92  thread   -     persona:uint/hex -> int
set_thread_area         205    -  thread   -     u_info:ptr -> none
get_thread_area         211    -  thread   -     u_info:ptr -> none
modify_ldt              154    -  thread   -     func:int ptr:ptr bytecount:size -> int

# Signals of the program's own threads
rt_sigaction             13  134  signal   -     sig:int/signal act:in[32]/sigaction oldact:out[32]/sigaction sigsetsize:size -> none
rt_sigprocmask           14  135  signal   -     how:int/sigmask_how set:in[sigsetsize]/sigset oldset:out[sigsetsize]/sigset sigsetsize:size -> none
rt_sigpending           127  136  signal   -     set:out[sigsetsize]/sigset sigsetsize:size -> none
rt_sigsuspend           130  133  signal   wait  mask:in[sigsetsize]/sigset sigsetsize:size -> none
rt_sigtimedwait         128  137  signal   wait  set:in[sigsetsize]/sigset info:out[128]/siginfo timeout:in[16]/timespec sigsetsize:size -> int
rt_sigreturn             15  139  signal   -     -> int
rt_tgsigqueueinfo       297  240  signal   -     process:int thread:int sig:int/signal info:in[128]/siginfo -> none
sigaltstack             131  132  signal   -     ss:in[24]/stack old_ss:out[24]/stack -> none
tkill                   200  130  signal   -     thread:int sig:int/signal -> none
tgkill                  234  131  signal   -     process:int thread:int sig:int/signal -> none
pause                    34    -  signal   wait  -> none
restart_syscall         219  128  signal   wait  -> int

# Clocks, timers, sleeping
time                    201    -  time     -     tloc:out[8]/i64_box -> int
gettimeofday             96  169  time     -     tv:out[16]/timeval tz:out[8]/timezone -> none
clock_gettime           228  113  time     -     clockid:int/clockid tp:out[16]/timespec -> none
clock_getres            229  114  time     -     clockid:int/clockid tp:out[16]/timespec -> none
nanosleep                35  101  time     wait  req:in[16]/timespec rem:out[16]/timespec -> none
clock_nanosleep         230  115  time     wait  clockid:int/clockid flags:int/timer_flags req:in[16]/timespec rem:out[16]/timespec -> none
alarm                    37    -  time     -     seconds:uint -> int
getitimer                36  102  time     -     which:int/itimer curr_value:out[32]/itimerval -> none
setitimer                38  103  time     -     which:int/itimer new_value:in[32]/itimerval old_value:out[32]/itimerval -> none
timer_create            222  107  time     -     clockid:int/clockid sevp:in[64]/sigevent timerid:out[4]/i32_box -> none
timer_settime           223  110  time     -     timerid:int flags:int/timer_flags new_value:in[32]/itimerspec old_value:out[32]/itimerspec -> none
timer_gettime           224  108  time     -     timerid:int curr_value:out[32]/itimerspec -> none
timer_getoverrun        225  109  time     -     timerid:int -> int
timer_delete            226  111  time     -     timerid:int -> none

# The machine that executes: its processors, randomness, accounting
getrandom               318  278  host     -     buf:out[buflen;ret] buflen:size flags:uint/random_flags -> bytes
getcpu                  309  168  host     -     cpu:out[4]/u32_box node:out[4]/u32_box cache:ptr -> none
getrusage                98  165  host     -     who:int/rusage_who usage:out[144]/rusage -> none
times                   100  153  host     -     buf:out[32]/tms -> int
iopl                    172    -  host     -     level:int -> none
ioperm                  173    -  host     -     from:size num:size turn_on:int -> none
uretprobe               335    -  host     -     -> int
uprobe                  336    -  host     -     -> int

# Numbers that no kernel of today implements (they answer ENOSYS)
sysfs                   139    -  system   -     option:int arg1:size arg2:size -> int bound
_sysctl                 156    -  system   -     params:ptr -> none bound
create_module           174    -  system   -     -> int bound
get_kernel_syms         177    -  system   -     -> int bound
query_module            178    -  system   -     -> int bound
nfsservctl              180   42  system   -     -> int bound
getpmsg                 181    -  system   -     -> int bound
putpmsg                 182    -  system   -     -> int bound
afs_syscall             183    -  system   -     -> int bound
tuxcall                 184    -  system   -     -> int bound
security                185    -  system   -     -> int bound
vserver                 236    -  system   -     -> int bound
"""


class SyscallTable(Mapping[str, Syscall]):
    """The rows by name, in the table's order. Any thread may read it: a row parsed twice is the same row."""

    def __init__(self, text: str) -> None:
        self._lines = index_rows(text)
        self._rows: dict[str, Syscall] = {}

    def __getitem__(self, name: str) -> Syscall:
        """Return the row called *name*.

        Raises:
            KeyError: Linux has no such call.
        """
        row = self._rows.get(name)
        if row is None:
            row = self._rows.setdefault(name, parse_row(self._lines[name]))
        return row

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def numbers(self, arch: Arch) -> dict[Sysno, str]:
        """Return the names of the calls that *arch* has, by number, without parsing any row."""
        numbers = ((parse_number(line, arch), name) for name, line in self._lines.items())
        return {number: name for number, name in numbers if number is not None}


class NumberTable(Mapping[Sysno, Syscall]):
    """The rows that one architecture has, by its numbers. Any thread may read it."""

    def __init__(self, table: SyscallTable, arch: Arch) -> None:
        self._table = table
        self._names = table.numbers(arch)
        self._rows: dict[Sysno, Syscall] = {}

    def __getitem__(self, number: Sysno) -> Syscall:
        """Return the row with that number.

        Raises:
            KeyError: the architecture has no call with that number.
        """
        row = self._rows.get(number)
        if row is None:
            row = self._rows[number] = self._table[self._names[number]]
        return row

    def __contains__(self, number: object) -> bool:
        return number in self._names

    def __iter__(self) -> Iterator[Sysno]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


#: Every syscall that ptserver knows, by name.
SYSCALLS = SyscallTable(_ROWS)

_by_number: dict[Arch, NumberTable] = {}


def by_number(arch: Arch) -> NumberTable:
    """Return the table by the numbers of *arch*."""
    table = _by_number.get(arch)
    if table is None:
        table = _by_number.setdefault(arch, NumberTable(SYSCALLS, arch))
    return table
