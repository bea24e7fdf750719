/* SPDX-License-Identifier: GPL-2.0
 *
 * The maps that user space and both programs share. layout.py creates and pins them before the
 * compile (PIN_ROOT, the MAX_ and the CONTROL_ numbers come from there) and checks its ctypes mirrors
 * against these structures, field by field, after it.
 */

/* What RFC 4301 makes an SA unique by on the wire. IPv4 is v4-mapped (::ffff:a.b.c.d). */
struct sa_key {
	__be32 addr[4];
	__be32 spi;
};

/* An address alone, in the same form. */
struct address {
	__be32 addr[4];
};

struct steer_entry {
	u32 owner;	/* OWNER_ENGINE or OWNER_KERNEL */
	u32 generation;	/* grows with every entry that user space writes */
	u32 counter;	/* index into steer_counts */
	__be16 port;	/* UDP port that the peer sends from, 0: its ESP is bare */
	u16 reserved;
	struct address peer;	/* where ESP in UDP comes from */
	u64 trial_ns;	/* CLOCK_MONOTONIC: until then what comes from elsewhere is given to the kernel */
};

struct steer_count {
	u64 engine_packets;
	u64 engine_octets;
	u64 kernel_packets;
	u64 kernel_octets;
};

struct verdict_count {
	u64 packets;
	u64 octets;
};

/* One record per SA that the guard has seen leave the kernel. Only the guard writes it. */
struct guard_record {
	u64 first_seen_ns;	/* CLOCK_MONOTONIC */
	u64 passed;		/* packets, segments of GSO packets counted one by one */
	u64 dropped;
};

/* A packet that the guard has held back: user space sends it another way as soon as its SA is decided on. All records
 * have one size, which is what a ring reserves. */
struct waiting_packet {
	u64 seen_ns;	/* CLOCK_MONOTONIC */
	struct sa_key key;
	u32 ifindex;	/* it was to leave by */
	u16 length;	/* of the frame */
	u16 l3;		/* where its IP header begins, 0 on interfaces without Ethernet */
	u16 esp;	/* where ESP begins */
	u8 frame[MAX_WAITING_FRAME];
};

/* Of an XFRM interface whose plaintext is the engine's: where it goes, and behind which tag. */
struct interface_lead {
	u32 uplink;	/* the kernel's end of the veth pair */
	u16 vlan;
	u16 mtu;	/* of the tunnel: it is the interface's too, but for XFRMI_FRAMES, of which longer ones are left */
	u32 versions;	/* of IP that the tunnel takes: XFRMI_IPV4, XFRMI_IPV6, or XFRMI_FRAMES */
	u8 engine_mac[ETH_ALEN];
	u8 kernel_mac[ETH_ALEN];
};

/* The interface that a VLAN ID stands for, and the IP versions that its tunnel may bring. */
struct interface_entry {
	u32 ifindex;
	u32 versions;
};

/* At the place that the low bits of its index say. */
struct exit_slot {
	u32 ifindex;	/* 0: none */
	u32 slot;	/* of exits */
};

/* BCC has no macro for a pinned ring buffer. */
#define PINNED_RING(name, octets)							\
	struct name##_table_t {								\
		int key;								\
		u32 leaf;								\
		int (*ringbuf_output)(void *, u64, u64);				\
		void *(*ringbuf_reserve)(u64);						\
		void (*ringbuf_discard)(void *, u64);					\
		void (*ringbuf_submit)(void *, u64);					\
		u32 max_entries;							\
	};										\
	__attribute__((section("maps/ringbuf:" PIN_ROOT "/" #name)))			\
	struct name##_table_t name = { .max_entries = octets }

BPF_TABLE_PINNED("array", u32, u64, control, MAX_CONTROL, PIN_ROOT "/control");
BPF_TABLE_PINNED("percpu_array", u32, struct verdict_count, verdicts, MAX_REASONS, PIN_ROOT "/verdicts");
BPF_TABLE_PINNED("hash", struct sa_key, struct steer_entry, steer, MAX_SAS, PIN_ROOT "/steer");
/* SAs of which ESP in UDP came from elsewhere than the entry says. Written here, taken out by user space. */
BPF_TABLE_PINNED("hash", struct sa_key, u32, moved, MAX_MOVED, PIN_ROOT "/moved");
BPF_TABLE_PINNED("percpu_array", u32, struct steer_count, steer_counts, MAX_SAS, PIN_ROOT "/steer_counts");
BPF_TABLE_PINNED("hash", struct sa_key, u32, guard_owner, MAX_SAS, PIN_ROOT "/guard_owner");
BPF_TABLE_PINNED("hash", struct sa_key, struct guard_record, guard_seen, MAX_SAS, PIN_ROOT "/guard_seen");
BPF_TABLE_PINNED("hash", struct address, u32, local_addresses, MAX_ADDRESSES, PIN_ROOT "/local_addresses");
BPF_TABLE_PINNED("hash", u32, struct interface_lead, interface_leads, MAX_XFRM_INTERFACES, PIN_ROOT "/interface_leads");
/* By the VLAN ID on the veth pair. */
BPF_TABLE_PINNED("hash", u32, struct interface_entry, interface_tags, MAX_XFRM_INTERFACES, PIN_ROOT "/interface_tags");

PINNED_RING(waiting, WAITING_RING_BYTES);

/* The ways out of the pipeline, one per docked interface: every dock has its own XSKMAP, and a packet may
 * only enter a socket of the interface that it came in by. One pipeline serves all interfaces, so it looks
 * the slot of ctx->ingress_ifindex up (only for packets that are steered) and tail-calls that dock's
 * to_vpp. A slot that is empty, or an interface without one, is REASON_NO_DOCK: the kernel takes the packet. */
BPF_TABLE_PINNED("array", u32, struct exit_slot, exit_slots, MAX_EXIT_SLOTS, PIN_ROOT "/exit_slots");
BPF_TABLE_PINNED("prog", u32, u32, exits, MAX_DOCKS, PIN_ROOT "/exits");

static __always_inline u64 control_value(u32 slot)
{
	u64 *value = control.lookup(&slot);

	return value ? *value : 0;
}
