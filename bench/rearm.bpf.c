/* SPDX-License-Identifier: GPL-2.0
 *
 * What the benchmark of the pipeline puts around it. A repeated test run does not restore the packet, and the
 * pipeline rewrites it: `same` and `each` make it what it was, with the same or the next source, and go on to the
 * program under test. `base` is the unit of all ratios; `base_many` is the same among so many flows that no cache has them.
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define WORDS		10	/* of the packet's head that are restored */
#define SOURCE		26	/* offsets behind Ethernet: IPv4 source, source port */
#define SOURCE_PORT	34
#define BASE_FLOWS	1024
#define MANY_FLOWS	(1 << 20)

/* Mirror: rearm.py, Arm. */
struct arm {
	__u64 head[WORDS];
	__u32 first;	/* IPv4 source of number 0 */
	__u32 count;	/* numbers before they begin again */
	__u32 number;	/* of the next packet */
	__u32 step;	/* the source port is number * step, 0: it stays */
	__u32 length;	/* of the frame: NAT64 makes it longer or shorter in front, answers cut it */
	__u32 cut;	/* 1: it is restored behind */
};

struct base_key {
	__be32 daddr;
	__be32 l4;	/* ports or SPI */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arm);
} arms SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} target SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, BASE_FLOWS);
	__type(key, struct base_key);
	__type(value, __u32);
} base_flows SEC(".maps");

struct many_key {
	__be32 saddr;
	struct base_key rest;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MANY_FLOWS);
	__type(key, struct many_key);
	__type(value, __u32);
} many_flows SEC(".maps");

static __always_inline struct arm *restore(struct xdp_md *ctx)
{
	__u64 *data = (void *)(long)ctx->data;
	__u32 zero = 0, word, length = ctx->data_end - ctx->data;
	struct arm *arm = bpf_map_lookup_elem(&arms, &zero);

	if (arm && length != arm->length) {
		if (arm->cut ? bpf_xdp_adjust_tail(ctx, (int)arm->length - (int)length)
			     : bpf_xdp_adjust_head(ctx, (int)length - (int)arm->length))
			return NULL;
		data = (void *)(long)ctx->data;
	}
	if (!arm || (void *)(data + WORDS) > (void *)(long)ctx->data_end)
		return NULL;
#pragma unroll
	for (word = 0; word < WORDS; word++)
		data[word] = arm->head[word];
	return arm;
}

SEC("xdp")
int same(struct xdp_md *ctx)
{
	if (restore(ctx))
		bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int each(struct xdp_md *ctx)
{
	struct arm *arm = restore(ctx);
	void *data = (void *)(long)ctx->data;
	__u32 number;

	if (!arm || data + WORDS * sizeof(__u64) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	number = arm->number;
	arm->number = number + 1 == arm->count ? 0 : number + 1;
	*(__be32 *)(data + SOURCE) = bpf_htonl(arm->first + number);
	if (arm->step)
		*(__be16 *)(data + SOURCE_PORT) = bpf_htons((number * arm->step & 0x7fff) | 0x4000);
	bpf_tail_call(ctx, &target, 0);
	return XDP_ABORTED;
}

SEC("xdp")
int trivial(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* False for what is no plain UDP or ESP. */
static __always_inline bool parse(struct xdp_md *ctx, struct many_key *key)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	__be32 *l4 = (void *)(ip + 1);

	if ((void *)(l4 + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5)
		return false;
	if (ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ESP)
		return false;
	key->saddr = ip->saddr;
	key->rest.daddr = ip->daddr;
	key->rest.l4 = *l4;
	return true;
}

SEC("xdp")
int base(struct xdp_md *ctx)
{
	struct many_key key;
	__u32 *ifindex;

	if (!parse(ctx, &key))
		return XDP_PASS;
	ifindex = bpf_map_lookup_elem(&base_flows, &key.rest);
	return ifindex ? bpf_redirect(*ifindex, 0) : XDP_PASS;
}

SEC("xdp")
int base_many(struct xdp_md *ctx)
{
	struct many_key key;
	__u32 *ifindex;

	if (!parse(ctx, &key))
		return XDP_PASS;
	ifindex = bpf_map_lookup_elem(&many_flows, &key);
	return ifindex ? bpf_redirect(*ifindex, 0) : XDP_PASS;
}

char _license[] SEC("license") = "GPL";
