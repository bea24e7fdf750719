/* SPDX-License-Identifier: GPL-2.0
 *
 * The guard on TC egress of the WAN: one owner for an outbound SA's sequence numbers at any moment.
 *
 * AF_XDP transmit does not pass here, so every ESP packet seen comes from the kernel. If the engine owns
 * the SA it is dropped. ESP of others that is only forwarded (its source is no address of ours) goes by. An SA that nobody decided on yet is held back (dropped and counted) for a moment, as
 * long as the daemon lives: user space then compares the kernel's sequence number with what was dropped, and
 * knows whether any number of that key has left. It fails open: with the daemon dead, the kernel sends. So it does with
 * an engine that is gone for certain, or gets nothing any more as no daemon is there (the dock of its plaintext says so):
 * the kernel's number is far ahead of the engine's.
 *
 * What is held back is not lost: the daemon gets a copy. Once the engine carries the SA, it opens the packet and gives the
 * plaintext to the engine; if the kernel keeps the SA, it sends the packet as it is.
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

	/* Without an engine there is nothing to decide. */
	return !control_value(CONTROL_ENGINE_GONE) && heartbeat && heartbeat + HEARTBEAT_LIMIT_NS > now &&
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

/* A copy for the daemon. With the ring full, or of what is too long or not one packet by itself, there is none. */
static __always_inline void let_wait(struct __sk_buff *skb, struct packet *pkt)
{
	void *data = (void *)(long)skb->data;
	struct waiting_packet *copy;
	u64 length = skb->len;

	if (skb->gso_segs > 1 || skb->vlan_present || length > MAX_WAITING_FRAME)
		return;
	/* Two comparisons of 64 bits: of one with a shifted range, or of half a register, the verifier (6.18, and before)
	 * does not learn both ends. */
	asm volatile("" : "+r"(length));
	if (length < ESP_MINIMUM)
		return;
	copy = waiting.ringbuf_reserve(sizeof(*copy));
	if (!copy)
		return;
	copy->seen_ns = bpf_ktime_get_ns();
	copy->key = pkt->key;
	copy->ifindex = skb->ifindex;
	copy->length = length;
	copy->l3 = pkt->l3 - data;
	copy->esp = pkt->cursor - data;
	if (bpf_skb_load_bytes(skb, 0, copy->frame, length))
		waiting.ringbuf_discard(copy, 0);
	else
		waiting.ringbuf_submit(copy, 0);
}

/* The daemon sends it again, for the kernel is about to get its SA, and what waited goes first. */
static __always_inline bool has_waited(struct __sk_buff *skb)
{
	u32 mark = control_value(CONTROL_WAITED_MARK);

	return mark && skb->mark == mark;
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
	if (dropped && has_waited(skb)) {
		reason = REASON_GUARD_KERNEL;
		dropped = false;
	}
	count_verdict(reason, skb->len, 1);
	if (record)
		__sync_fetch_and_add(dropped ? &record->dropped : &record->passed, packets);
	if (!dropped)
		return TC_ACT_UNSPEC;
	let_wait(skb, pkt);
	return TC_ACT_SHOT;
}
