/* SPDX-License-Identifier: GPL-2.0
 *
 * The guard on TC egress of the WAN: one owner for an outbound SA's sequence numbers at any moment.
 *
 * AF_XDP transmit does not pass here, so every ESP packet seen comes from the kernel. If the engine owns
 * the SA it is dropped. ESP of others that is only forwarded (its source is no address of ours) goes by. An SA that nobody decided on yet is held back (dropped and counted) for a moment, as
 * long as the daemon lives: user space then compares the kernel's sequence number with what was dropped, and
 * knows whether any number of that key has left. It fails open: with the daemon dead, the kernel sends. So it does with
 * an engine that is gone for certain (the dock of its plaintext says so): the kernel's number is far ahead of the engine's.
 *
 * Of a packet in fragments only the first has the SPI. If that one is dropped the rest passes, and no
 * receiver can put it together. Passing means TC_ACT_UNSPEC: other filters on the hook have their say.
 */
#define HEARTBEAT_LIMIT_NS	2000000000ULL	/* a daemon silent for longer counts as dead */
#define HEADERS_PULLED		160		/* bytes: Ethernet, tag, IP with options or extensions, ICMP and what it quotes */

/* Times may be newer than `now`, written by another CPU meanwhile: compare sums, never differences. */
static __always_inline bool held_back(struct guard_record *record)
{
	u64 now = bpf_ktime_get_ns(), heartbeat = control_value(CONTROL_HEARTBEAT_NS);

	return heartbeat && heartbeat + HEARTBEAT_LIMIT_NS > now &&
	       record->first_seen_ns + control_value(CONTROL_HOLD_NS) > now;
}

static __always_inline struct guard_record *guard_record_of(struct sa_key *key)
{
	struct guard_record *record = guard_seen.lookup(key), fresh = {};

	if (record)
		return record;
	fresh.first_seen_ns = bpf_ktime_get_ns();
	guard_seen.insert(key, &fresh);	/* another CPU may win: its record is as good */
	return guard_seen.lookup(key);
}

static __always_inline u32 guard_verdict(struct guard_record *record, u32 *owner)
{
	if (owner && *owner != OWNER_ENGINE)
		return REASON_GUARD_KERNEL;
	if (owner)
		return control_value(CONTROL_ENGINE_GONE) ? REASON_GUARD_TAKEN_OVER : REASON_GUARD_ENGINE;
	if (!record)
		return REASON_GUARD_FULL;
	return held_back(record) ? REASON_GUARD_HELD : REASON_GUARD_NEWBORN;
}

static __always_inline int guard_esp(struct __sk_buff *skb, struct packet *pkt)
{
	/* A GSO packet becomes that many packets, each with its own sequence number. */
	u64 packets = skb->gso_segs ? skb->gso_segs : 1;
	/* Copies: what a map reads lies on the stack as a whole, and the packet would fill it (512 bytes). */
	struct address source = pkt->source;
	struct sa_key key = pkt->key;
	u32 *owner = guard_owner.lookup(&key), reason;
	struct guard_record *record;
	bool dropped;

	if (!owner && !local_addresses.lookup(&source)) {
		count_verdict(REASON_GUARD_TRANSIT, skb->len, 1);
		return TC_ACT_UNSPEC;
	}
	record = guard_record_of(&key);
	reason = guard_verdict(record, owner);
	dropped = reason == REASON_GUARD_ENGINE || reason == REASON_GUARD_HELD;
	count_verdict(reason, skb->len, 1);
	if (record)
		__sync_fetch_and_add(dropped ? &record->dropped : &record->passed, packets);
	return dropped ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}
