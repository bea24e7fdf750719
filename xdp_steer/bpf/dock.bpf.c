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

/* The pipeline tail-calls this one to hand a packet to the engine: with no live socket on
 * the queue (engine absent or dead) the packet goes to the kernel. */
SEC("xdp")
int to_vpp(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct dock_count *count = bpf_map_lookup_elem(&dock_counts, &zero);
	int action = bpf_redirect_map(&xsks_map, ctx->rx_queue_index, XDP_PASS);

	if (count) {
		if (action == XDP_REDIRECT)
			count->to_engine++;
		else
			count->fell_to_kernel++;
	}
	return action;
}

char _license[] SEC("license") = "GPL";
__uint(xsk_prog_version, 1) SEC("xdp_metadata");
