/* SPDX-License-Identifier: GPL-2.0
 *
 * The dock: the one XDP program that stays attached to an interface.
 *
 * It has the name, the BTF version marker and the map that libxdp looks for, so an engine that uses
 * libxdp (VPP's af_xdp without `prog`) joins it and puts its sockets into xsks_map instead of attaching
 * a program of its own. It is attached through a pinned bpf_link, so a netlink detach is refused.
 * Everything that changes lives behind the `pipeline` program array.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_QUEUES	64	/* sockets, one per RX queue */
#define PIPELINE_SLOTS	8	/* slot 0 is the entry, the rest is reserved for stages */
#define NEVER_A_QUEUE	0xffffffff
/* Mirrors: xdp_steer/layout.py, MAX_CONTROL, and of Control ENGINE_GONE, TRANSLATOR and DAEMON_AWAY_NS. */
#define MAX_CONTROL	32
#define ENGINE_GONE	11
#define TRANSLATOR	13
#define DAEMON_AWAY_NS	17

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_QUEUES);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} xsks_map SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, PIPELINE_SLOTS);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} pipeline SEC(".maps");

/* Mirror: xdp_steer/layout.py, DockCountLeaf. Packets. */
struct dock_count {
	__u64 to_engine;
	__u64 fell_to_kernel;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct dock_count);
} dock_counts SEC(".maps");

/* The gateway's own, by its pin: the guard on TC egress reads it. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CONTROL);
	__type(key, __u32);
	__type(value, __u64);
} control SEC(".maps");

SEC("xdp")
int xsk_def_prog(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &pipeline, 0);
	/* No pipeline installed. The branch is never taken: libxdp looks for xsks_map
	 * among the maps that this very program uses, so it must use it. */
	if (ctx->rx_queue_index == NEVER_A_QUEUE)
		return bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);
	return XDP_PASS;
}

static __always_inline int counted(int action)
{
	__u32 zero = 0;
	struct dock_count *count = bpf_map_lookup_elem(&dock_counts, &zero);

	if (count) {
		if (action == XDP_REDIRECT)
			count->to_engine++;
		else
			count->fell_to_kernel++;
	}
	return action;
}

/* To the live socket of the queue; with none (engine absent or dead) the packet ends in `otherwise`. */
static __always_inline int hand_over(struct xdp_md *ctx, int otherwise)
{
	return counted(bpf_redirect_map(&xsks_map, ctx->rx_queue_index, otherwise));
}

/* The pipeline tail-calls this one to hand a packet to the engine. */
SEC("xdp")
int to_vpp(struct xdp_md *ctx)
{
	return hand_over(ctx, XDP_PASS);
}

static __always_inline int any_socket(void)
{
	__u32 queue;

	/* Unrolled: a counter on the stack, where a key has to be, looks endless to the verifier (6.18, and before). */
#pragma unroll
	for (queue = 0; queue < MAX_QUEUES; queue++) {
		__u32 key = queue;

		if (bpf_map_lookup_elem(&xsks_map, &key))
			return 1;
	}
	return 0;
}

/* No daemon has shown itself for so long that nobody follows rekeys any more, and that the engine could come near the
 * kernel's numbers. */
static __always_inline int daemon_is_away(void)
{
	__u32 slot = DAEMON_AWAY_NS;
	__u64 *since = bpf_map_lookup_elem(&control, &slot);

	return since && *since && *since < bpf_ktime_get_coarse_ns();
}

/* The entry of the engine's end of the veth pair, where plaintext arrives. What is to be encrypted comes by no other way,
 * so the engine numbers no more once the kernel gets it. It does so for good when no daemon is there, or when the engine
 * has gone: a packet that finds no socket at all proves that, for the kernel closes a process's sockets when its last
 * thread has ended. The mark is set before this very packet reaches the guard, which from then on lets the kernel send.
 * Only user space takes it away: neither an engine nor a daemon gets anything back by coming back. */
SEC("xdp")
int plain_to_vpp(struct xdp_md *ctx)
{
	__u32 slot = ENGINE_GONE;
	__u64 *gone = bpf_map_lookup_elem(&control, &slot);
	int action;

	if (gone && !*gone && daemon_is_away())
		*gone = 1;
	if (gone && *gone)
		return counted(XDP_PASS);
	action = hand_over(ctx, XDP_PASS);
	if (action != XDP_REDIRECT && gone && !any_socket())
		*gone = 1;
	return action;
}

/* The entry of VPP's end of the pair of NAT. What is to be translated is nobody else's: without a socket it is dropped. One
 * that finds none at all proves that VPP has ended: no new flow is given to it, until user space says so again. */
SEC("xdp")
int nat_to_vpp(struct xdp_md *ctx)
{
	int action = hand_over(ctx, XDP_DROP);
	__u32 slot = TRANSLATOR;
	__u64 *since;

	if (action == XDP_REDIRECT)
		return action;
	since = bpf_map_lookup_elem(&control, &slot);
	if (since && *since && !any_socket())
		*since = 0;
	return action;
}

char _license[] SEC("license") = "GPL";
__uint(xsk_prog_version, 1) SEC("xdp_metadata");
