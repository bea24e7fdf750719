/* SPDX-License-Identifier: GPL-2.0
 *
 * The programs that BCC compiles: `xdp_pipeline` behind the docks of WAN interfaces (XDP), `tc_guard` on their TC egress,
 * and those of XFRM interfaces (xfrmi.h). Without FIREWALL they steer and guard only, which compiles in a fraction of the time.
 * pipeline.py puts the numbers shared with Python (reasons, owners, sizes) before this text and
 * the stages in place of the includes: BCC rewrites map calls in its main file only.
 */
#include <uapi/linux/bpf.h>
#include <uapi/linux/if_ether.h>
#include <uapi/linux/in.h>
#include <uapi/linux/in6.h>
#include <uapi/linux/ip.h>
#include <uapi/linux/ipv6.h>
#include <uapi/linux/pkt_cls.h>
#include <uapi/linux/tcp.h>
#include <uapi/linux/udp.h>

#include "maps.h"
#include "parse.h"
#include "exit.h"
#include "steer.h"
#include "guard.h"
#include "xfrmi.h"
#if FIREWALL
#include "flow_maps.h"
#include "screen_maps.h"
#include "filter_maps.h"
#include "events.h"
#include "flow.h"
#include "checksum.h"
#include "enter.h"
#include "route.h"
#include "rewrite.h"
#include "session_limit.h"
#include "classify.h"
#include "kinds.h"
#include "translate.h"
#include "session.h"
#include "tunnel.h"
#include "forward.h"
#include "policy.h"
#include "new.h"
#include "screen_note.h"
#include "create.h"
#include "tunnel_nat.h"
#include "icmp_error.h"
#include "answer.h"
#include "translator.h"
#include "nat64.h"
#include "nat64_error.h"
#include "egress.h"
#include "decrypted.h"
#include "cookie.h"
#include "screen.h"
#include "screen_new.h"
#include "policer.h"
#include "filter.h"
#endif

static __always_inline int take(struct xdp_md *ctx)
{
	struct packet pkt = {
		.cursor = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
	};
	struct steer_count *counters = NULL;
	u32 parsed = parse_ip(&pkt), reason = parsed;
	void *l4 = pkt.cursor;

	if (reason == NEXT)
		reason = parse_esp(&pkt, false);
	if (reason == NEXT)
		reason = steer_esp(&pkt, &counters);
#if FIREWALL
	if (reason != REASON_STEERED && parsed != REASON_NOT_IP && control_value(CONTROL_FIREWALL)) {
		count_kernel(counters, (void *)(long)ctx->data_end - (void *)(long)ctx->data);
		pkt.cursor = l4;
		return enter(ctx, &pkt, parsed != REASON_TRUNCATED);
	}
#endif
	return leave(ctx, reason, counters);
}

int xdp_pipeline(struct xdp_md *ctx)
{
	int action = steer_plain(ctx);

	return action == NEXT ? take(ctx) : action;
}

/* Have the headers in one piece; `pkt` is set to the whole of it. */
static __always_inline void open_skb(struct __sk_buff *skb, struct packet *pkt)
{
	u32 wanted = skb->len < HEADERS_PULLED ? skb->len : HEADERS_PULLED;

	if ((void *)(long)skb->data + wanted > (void *)(long)skb->data_end)
		bpf_skb_pull_data(skb, wanted);
	pkt->cursor = (void *)(long)skb->data;
	pkt->end = (void *)(long)skb->data_end;
}

/* What the kernel sends, its IP headers parsed. */
static __always_inline int watch(struct __sk_buff *skb, struct packet *pkt, u32 parsed)
{
	void *l4 = pkt->cursor;

	if (parsed == NEXT && parse_esp(pkt, true) == NEXT)
		return guard_esp(skb, pkt);
#if FIREWALL
	if (parsed != REASON_NOT_IP && control_value(CONTROL_FIREWALL)) {
		pkt->cursor = l4;
		return egress(skb, pkt, parsed != REASON_TRUNCATED);
	}
#endif
	return TC_ACT_UNSPEC;
}

int tc_guard(struct __sk_buff *skb)
{
	struct packet pkt = {};

	open_skb(skb, &pkt);
	return watch(skb, &pkt, parse_ip(&pkt));
}

#if FIREWALL
int tc_decrypted(struct __sk_buff *skb)
{
	struct bpf_xfrm_state state = {};
	struct packet pkt = {};

	if (!control_value(CONTROL_FIREWALL) || bpf_skb_get_xfrm_state(skb, 0, &state, sizeof(state), 0))
		return TC_ACT_UNSPEC;
	open_skb(skb, &pkt);
	return take_decrypted(skb, &pkt, parse_ip(&pkt), state.reqid, false);
}

/* Interfaces without Ethernet: their packets begin with the IP header, but for those that the kernel has decrypted
 * (xfrm_input.c), which have the Ethernet header of the packet around them. */
int tc_routed_in(struct __sk_buff *skb)
{
	struct packet pkt = {};
	bool bare;

	if (!control_value(CONTROL_FIREWALL))
		return TC_ACT_UNSPEC;
	open_skb(skb, &pkt);
	bare = !has_ethernet(skb, &pkt);
	if (!bare)
		pkt.cursor += ETH_HLEN;
	return take_routed(skb, &pkt, parse_l3(&pkt, skb->protocol), bare);
}

int tc_routed_out(struct __sk_buff *skb)
{
	struct packet pkt = {};

	open_skb(skb, &pkt);
	return watch(skb, &pkt, parse_l3(&pkt, skb->protocol));
}
#endif
