# Run by bash inside the node's namespaces, before anything else, with STATE set: its mounts, its sysctls and its
# address. None of it is seen outside.
set -eu

# What kubelet mounts for a volume must reach the containers.
mount --make-rshared /
hostname node1

# The usual folders, but the cluster's own.
bind() {
  mkdir -p "$STATE/$1" "$2"
  mount --bind "$STATE/$1" "$2"
}
bind kubelet /var/lib/kubelet
bind cni-state /var/lib/cni
bind run-containerd /run/containerd
bind netns /run/netns
bind log-pods /var/log/pods
bind log-containers /var/log/containers

# kubelet sets these for the whole machine. It finds its values here, and the machine's stay.
mkdir -p "$STATE/sysctl"
while read -r name value; do
  file=$STATE/sysctl/$(basename "$name")
  echo "$value" > "$file"
  mount --bind "$file" "/proc/sys/$name"
done <<'SYSCTLS'
vm/overcommit_memory 1
vm/panic_on_oom 0
kernel/panic 10
kernel/panic_on_oops 1
kernel/keys/root_maxkeys 1000000
kernel/keys/root_maxbytes 25000000
SYSCTLS

ip link set lo up
# The node's address. The far end leads nowhere.
ip link add eth0 type veth peer name eth0-far
ip link set eth0-far up
ip link set eth0 up
ip address add 10.89.0.2/24 dev eth0
# A Service's address needs a way to begin with: it is rewritten on its way out.
ip route add 10.96.0.0/16 dev eth0
echo 1 > /proc/sys/net/ipv4/ip_forward
echo "32768 60999" > /proc/sys/net/ipv4/ip_local_port_range
if [ -e /proc/sys/net/bridge/bridge-nf-call-iptables ]; then
  echo 1 > /proc/sys/net/bridge/bridge-nf-call-iptables
fi
