/* Carry packets between the hosts of a network laboratory as a slow network would: `relay DELAY_US MBIT_S MTU PID...`.
 *
 * Host i, the network namespace of process PID i, gets the device eth0 with 10.77.0.i/24. A packet takes its bytes over the
 * rate of its sender, one at a time, then the delay. Packets that TCP has not cut yet (up to 64 KiB) are passed on whole, as
 * the kernel does it in a machine, which takes a fortieth of the system calls; their time is that of the packets they stand
 * for. Prints "ready" once all devices are up; ends with its standard input. Linux, root; facts: tun(4), virtio_net.h. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST_HOSTS = 32, MOST_BYTES = 65535, AT_ONCE = 64, NET = 0x0a4d0000, HEADERS = 52 /* IP, TCP, time stamps */ };

typedef struct Packet {
    struct Packet *next;
    uint64_t due_ns;
    int to;
    size_t bytes;
    unsigned char content[]; /* the virtio header, then the packet */
} Packet;

typedef struct {
    int device;
    uint64_t free_ns;     /* when the sender has sent all it has */
    Packet *first, *last; /* on their way from here, in the order in which they are due */
} Host;

static Host hosts[MOST_HOSTS];
static int num_hosts;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int must(int status, const char *what) {
    if (status < 0) {
        perror(what);
        exit(1);
    }
    return status;
}

/* Give the device eth0 of the current namespace its address and bring it up. */
static void configure(int number, int mtu) {
    const int s = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    struct ifreq request = {.ifr_name = "eth0"};
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    request.ifr_mtu = mtu;
    must(ioctl(s, SIOCSIFMTU, &request), "mtu");
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl((uint32_t)(NET + number))};
    must(ioctl(s, SIOCSIFADDR, &request), "address");
    address->sin_addr.s_addr = htonl(0xffffff00u);
    must(ioctl(s, SIOCSIFNETMASK, &request), "netmask");
    must(ioctl(s, SIOCGIFFLAGS, &request), "flags");
    request.ifr_flags |= IFF_UP;
    must(ioctl(s, SIOCSIFFLAGS, &request), "up");
    close(s);
}

/* Return the new device of the namespace of a process. */
static int make_device(const char *pid, int number, int mtu) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%s/ns/net", pid);
    const int space = must(open(path, O_RDONLY | O_CLOEXEC), path);
    must(setns(space, CLONE_NEWNET), "setns");
    close(space);
    const int device = must(open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC), "/dev/net/tun");
    struct ifreq request = {.ifr_name = "eth0"};
    request.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR;
    must(ioctl(device, TUNSETIFF, &request), "TUNSETIFF");
    must(ioctl(device, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4), "TUNSETOFFLOAD");
    configure(number, mtu);
    return device;
}

/* Return the bytes that a packet is on the wire: one that is not cut yet has its headers once. */
static size_t wire_bytes(const Packet *packet) {
    struct virtio_net_hdr header;
    memcpy(&header, packet->content, sizeof header);
    const size_t bytes = packet->bytes - sizeof header;
    if (header.gso_type == VIRTIO_NET_HDR_GSO_NONE || header.gso_size == 0) return bytes;
    return bytes + (bytes - HEADERS - 1) / header.gso_size * HEADERS;
}

/* Read one packet of a host and put it on its way. Return whether there was one. */
static int take(Host *from, double ns_per_byte, uint64_t delay_ns) {
    static unsigned char buffer[sizeof(struct virtio_net_hdr) + MOST_BYTES];
    const ssize_t bytes = read(from->device, buffer, sizeof buffer);
    const unsigned char *ip = buffer + sizeof(struct virtio_net_hdr);
    if (bytes < (ssize_t)sizeof(struct virtio_net_hdr) + 20) return 0;
    const int to = ip[19] - 1;
    if (ip[0] >> 4 != 4 || ip[16] != 10 || ip[17] != 77 || to < 0 || to >= num_hosts) return 1;
    Packet *packet = malloc(sizeof *packet + (size_t)bytes);
    if (packet == NULL) exit(1);
    packet->next = NULL;
    packet->to = to;
    packet->bytes = (size_t)bytes;
    memcpy(packet->content, buffer, (size_t)bytes);
    const uint64_t now = now_ns();
    if (from->free_ns < now) from->free_ns = now;
    from->free_ns += (uint64_t)((double)wire_bytes(packet) * ns_per_byte);
    packet->due_ns = from->free_ns + delay_ns;
    if (from->first == NULL)
        from->first = packet;
    else
        from->last->next = packet;
    from->last = packet;
    return 1;
}

/* Hand over what is due. Return the time at which the next packet is, or 0. */
static uint64_t deliver(void) {
    uint64_t next = 0;
    for (Host *host = hosts; host < hosts + num_hosts; host++) {
        while (host->first != NULL && host->first->due_ns <= now_ns()) {
            Packet *packet = host->first;
            if (write(hosts[packet->to].device, packet->content, packet->bytes) < 0 && errno == EAGAIN) break;
            host->first = packet->next;
            free(packet);
        }
        if (host->first != NULL && (next == 0 || host->first->due_ns < next)) next = host->first->due_ns;
    }
    return next;
}

int main(int count, char **words) {
    if (count < 5) return 2;
    const uint64_t delay_ns = (uint64_t)(atof(words[1]) * 1000);
    const double ns_per_byte = atof(words[2]) > 0 ? 8000 / atof(words[2]) : 0;
    for (; num_hosts < count - 4 && num_hosts < MOST_HOSTS; num_hosts++)
        hosts[num_hosts].device = make_device(words[4 + num_hosts], num_hosts + 1, atoi(words[3]));
    prctl(PR_SET_TIMERSLACK, 1);
    const struct sched_param priority = {.sched_priority = 50};
    sched_setscheduler(0, SCHED_FIFO, &priority); /* ranks that spin shall not hold packets up; a pity where refused */
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd files[MOST_HOSTS + 1] = {{.fd = STDIN_FILENO, .events = POLLIN}};
        for (int i = 0; i < num_hosts; i++) files[i + 1] = (struct pollfd){.fd = hosts[i].device, .events = POLLIN};
        const uint64_t next = deliver(), now = now_ns(), wait = next > now ? next - now : 0;
        const struct timespec until = {(time_t)(wait / 1000000000u), (long)(wait % 1000000000u)};
        if (ppoll(files, (nfds_t)num_hosts + 1, next ? &until : NULL, NULL) <= 0) continue;
        if (files[0].revents) return 0;
        for (int i = 0; i < num_hosts; i++)
            for (int turn = 0; files[i + 1].revents & POLLIN && turn < AT_ONCE; turn++)
                if (!take(&hosts[i], ns_per_byte, delay_ns)) break;
    }
}
