#!/bin/busybox sh
# Process 1 of the guest, out of the initramfs: modules, this machine's files under a layer in memory, then second.sh.
B=/bin/busybox
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
die() { echo "guest: $*" >/dev/kmsg; $B poweroff -f; $B sleep 9; }
while read -r module; do $B insmod "/modules/$module" || die "no module $module"; done </modules/order
A=/sys/firmware/qemu_fw_cfg/by_name/opt/cpe
ask() { $B cat "$A/$1/raw"; }

$B mount -t virtiofs -o ro machine /lower || die "this machine's files are not there"
$B mount -t tmpfs -o mode=755,size=75% upper /upper; $B mkdir /upper/files /upper/work
$B mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work root /new || die "no overlay"
for each in proc sys dev; do $B mount --move "/$each" "/new/$each"; done
cd /new
$B mount -t tmpfs -o mode=755 run run; $B mkdir -p run/lock run/netns dev/pts dev/shm dev/net
$B mount -t tmpfs -o mode=1777 tmp tmp
$B mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts; $B mount -t tmpfs -o mode=1777 shm dev/shm
$B ln -s /proc/self/fd dev/fd; for each in 0:stdin 1:stdout 2:stderr; do $B ln -s "/proc/self/fd/${each%:*}" "dev/${each#*:}"; done
[ -e dev/net/tun ] || $B mknod dev/net/tun c 10 200
$B mount -t cgroup2 cgroup2 sys/fs/cgroup

# Directories of this machine beside its root: "checkout ro /path", "results rw /path".
A=/new$A
ask shares | while read -r tag mode path; do $B mkdir -p "/new$path"; $B mount -t virtiofs -o "$mode" "$tag" "/new$path" || die "no $path"; done
$B mkdir -p lib/modules; $B ln -sfn "$(ask modules)" "lib/modules/$($B uname -r)"
echo guest >proc/sys/kernel/hostname
exec $B switch_root /new /bin/bash "$(ask second)"
