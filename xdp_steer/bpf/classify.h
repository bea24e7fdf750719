/* SPDX-License-Identifier: GPL-2.0
 *
 * The first rule row of a table that matches a flow, by bit vectors (see flow_maps.h).
 */
static __always_inline u32 prefix_class(u32 bank, u32 side, const struct address *a)
{
	struct prefix_key key = { .prefixlen = 32 + 128, .bank = bank, .side = side, .addr = *a };
	u32 *found = prefixes.lookup(&key);

	return found ? *found : 0;
}

static __always_inline u32 service_class(u32 bank, u32 table, u32 kind, u16 index)
{
	u32 chunk = ((bank * MAX_TABLES + table) * MAX_SERVICE_KINDS + kind) * (65536 / SERVICE_CHUNK) + (index >> 8);
	struct service_row *row = services.lookup(&chunk);

	return row ? row->classes[index & (SERVICE_CHUNK - 1)] : 0;
}

static __always_inline struct bit_row *bits_of(u32 bank, u32 table, u32 dimension, u32 class)
{
	u32 index = ((bank * MAX_TABLES + table) * MAX_DIMENSIONS + dimension) * MAX_CLASSES + class;

	return rule_bits.lookup(&index);
}

static __always_inline u32 service_kind(u8 protocol)
{
	if (protocol == IPPROTO_TCP)
		return SERVICE_TCP;
	if (protocol == IPPROTO_UDP)
		return SERVICE_UDP;
	if (protocol == IPPROTO_ICMP)
		return SERVICE_ICMP;
	return protocol == ICMP6_PROTOCOL ? SERVICE_ICMP6 : SERVICE_OTHER;
}

/* Position of the lowest bit of a word that is not 0. BCC's LLVM 14 does not survive __builtin_ctzll(). */
static __always_inline u32 lowest(u64 bits)
{
	u32 at = 0, step, half;

#pragma unroll
	for (step = 32; step; step >>= 1) {
		half = bits & ((1ULL << step) - 1) ? 0 : step;
		bits >>= half;
		at += half;
	}
	return at;
}

/* Index of the first matching row, or NO_ROW. `zone_pair` is from * MAX_ZONES + to. The packet's source and source port are
 * matched as they arrived, its service by m->code, its destination as given. */
static __always_inline u32 first_match(struct meta *m, u32 table, u32 zone_pair, const struct address *daddr)
{
	u32 bank = m->bank, kind = service_kind(m->key.protocol), word, flags, words;
	struct bit_row *zones, *service, *source, *destination, *source_port;
	struct ruleset *rules = rulesets.lookup(&bank);

	if (!rules)
		return NO_ROW;
	words = rules->tables[table].words;
	flags = rules->tables[table].flags;
	if (!words)
		return NO_ROW;
	zones = bits_of(bank, table, DIM_ZONES, zone_pair);
	service = bits_of(bank, table, DIM_SERVICE,
			  service_class(bank, table, kind, kind == SERVICE_OTHER ? m->key.protocol : m->code));
	if (!zones || !service)
		return NO_ROW;
	source = destination = source_port = zones;
	if (!(flags & TABLE_ANY_SOURCE))
		source = bits_of(bank, table, DIM_SOURCE, prefix_class(bank, table * 2, &m->key.saddr));
	if (!(flags & TABLE_ANY_DESTINATION))
		destination = bits_of(bank, table, DIM_DESTINATION, prefix_class(bank, table * 2 + 1, daddr));
	if (!(flags & TABLE_ANY_SOURCE_PORT) && kind <= SERVICE_UDP)
		source_port = bits_of(bank, table, DIM_SOURCE_PORT,
				      service_class(bank, table, SERVICE_TCP_SOURCE + kind, ntohs(m->key.sport)));
	if (!source || !destination || !source_port)
		return NO_ROW;
	for (word = 0; word < MAX_WORDS; word++) {
		u64 bits;

		if (word >= words)
			break;
		bits = zones->words[word] & service->words[word] & source->words[word] &
		       destination->words[word] & source_port->words[word];
		if (bits)
			return word * 64 + lowest(bits);
	}
	return NO_ROW;
}

static __always_inline struct rule_row *row_of(u32 bank, u32 table, u32 row)
{
	u32 index = (bank * MAX_TABLES + table) * MAX_ROWS + row;

	if (row >= MAX_ROWS)
		return NULL;
	return rule_rows.lookup(&index);
}
