/* SPDX-License-Identifier: GPL-2.0
 *
 * Internet checksums (RFC 1071), changed in place (RFC 1624, equation 3). A difference is a sum of ~old + new.
 */
/* Of less than 1 << 47: what is added up here are a few differences of 33 bits, or a packet's words. */
static __always_inline u16 fold(u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline u64 difference32(__be32 old, __be32 new)
{
	return (u64)(u32)~old + new;
}

static __always_inline u64 difference16(__be16 old, __be16 new)
{
	return (u64)(u16)~old + new;
}

static __always_inline u64 address_difference(const struct address *old, const struct address *new, bool v6)
{
	if (!v6)	/* the rest of a v4-mapped address is not in the packet */
		return difference32(old->addr[3], new->addr[3]);
	return difference32(old->addr[0], new->addr[0]) + difference32(old->addr[1], new->addr[1]) +
	       difference32(old->addr[2], new->addr[2]) + difference32(old->addr[3], new->addr[3]);
}

static __always_inline u16 changed(u16 checksum, u64 difference)
{
	return ~fold((u64)(u16)~checksum + difference);
}

/* The same by a difference that is folded already. */
static __always_inline u16 changed16(u16 checksum, u16 difference)
{
	u32 sum = (u32)(u16)~checksum + difference;

	return ~((sum & 0xffff) + (sum >> 16));
}

static __always_inline u64 address_sum(const struct address *a)
{
	return (u64)a->addr[0] + a->addr[1] + a->addr[2] + a->addr[3];
}
