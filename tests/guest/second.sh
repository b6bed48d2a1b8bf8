# Process 1 of the guest, on this machine's files: runs the command, tells its status, and switches off.
# Few processes: each costs 10 to 50 ms here.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb SHELL=/bin/bash
asked=/sys/firmware/qemu_fw_cfg/by_name/opt/cpe
for port in /sys/class/virtio-ports/*; do
    read -r name <"$port/name"
    declare "port_$name=/dev/${port##*/}"
done
ip link set lo up
setsid bash -c "$(cat "$asked/command/raw")" </dev/null >"$port_out" 2>"$port_err"
status=$?
echo "$status" >"$port_status"
cd / && sync
busybox poweroff -f
sleep 9
