/* The comparison circuit, garbled and evaluated a lane at a time: what protocol/half_gates_arrays.py does, to the bit.
 *
 * Half-gates (Zahur, Rosulek, Evans 2015) with free XOR and point-and-permute, over the circuit of protocol/circuit.py.
 * There is no cipher here: AES-128 is OpenSSL's, through the functions that `half_gates_bind_2` is given. No branch and
 * no address depends on a label: select bits become masks.
 *
 * It includes no header of Python's: protocol/half_gates_compiled.py loads it by ctypes, which lets other threads run
 * meanwhile. A change of what the functions below take is another number in the name of the first.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "labels are little-endian words here; without this file they are garbled over arrays"
#endif

enum { INPUTS = 6, BITS = 48, LOW = BITS - 1, ANDS = 321, WIDEST = 2 * LOW, TWEAKS_PER_LANE = 1024, OUTPUT_TWEAK = 1023 };
enum { KEY_BYTES = 16, STREAM_KEY_BYTES = 32, CHANNELS = 4 };

typedef uint64_t block __attribute__((vector_size(16)));
typedef block number[BITS];                                               /* a wire a bit, the lowest first */
typedef uint64_t kept __attribute__((vector_size(16), aligned(1), may_alias)); /* a block in the caller's memory */

typedef struct evp_cipher_ctx_st EVP_CIPHER_CTX;
typedef struct evp_cipher_st EVP_CIPHER;

/* OpenSSL's, EVP_EncryptInit(3): stable from 1.1.0 on. */
static EVP_CIPHER_CTX *(*ctx_new)(void);
static void (*ctx_free)(EVP_CIPHER_CTX *);
static const EVP_CIPHER *(*aes_128_ecb)(void);
static const EVP_CIPHER *(*aes_256_ctr)(void);
static int (*encrypt_init)(EVP_CIPHER_CTX *, const EVP_CIPHER *, void *, const unsigned char *, const unsigned char *);
static int (*encrypt_update)(EVP_CIPHER_CTX *, unsigned char *, int *, const unsigned char *, int);

void half_gates_bind_2(void *const functions[6])
{
    memcpy(&ctx_new, &functions[0], sizeof ctx_new);
    memcpy(&ctx_free, &functions[1], sizeof ctx_free);
    memcpy(&aes_128_ecb, &functions[2], sizeof aes_128_ecb);
    memcpy(&aes_256_ctr, &functions[3], sizeof aes_256_ctr);
    memcpy(&encrypt_init, &functions[4], sizeof encrypt_init);
    memcpy(&encrypt_update, &functions[5], sizeof encrypt_update);
}

/* One lane under way. `rows` are the table's: written by a garbler, read by an evaluator. */
typedef struct lane {
    EVP_CIPHER_CTX *pi;
    block offset;
    kept (*rows)[2];
    uint64_t tweak; /* of its first gate */
    int gate;
    int failed;
    block labels[CHANNELS * WIDEST], hashes[CHANNELS * WIDEST], once[CHANNELS * WIDEST]; /* of one layer */
} lane;

typedef void (*and_layer)(lane *, int gates, const block *left, const block *right, block *out);

static inline block select_mask(block label)
{
    uint64_t mask = -(label[0] & 1);
    return (block){mask, mask};
}

static void permute(lane *of, block *to, const block *from, int blocks)
{
    int done = 0, size = blocks * (int)sizeof(block);
    if (encrypt_update(of->pi, (unsigned char *)to, &done, (const unsigned char *)from, size) != 1 || done != size)
        of->failed = 1;
}

/* H(x, i) = pi(pi(x) ^ i) ^ pi(x) of `labels`, whose tweaks stand in `hashes`; these become their hashes. */
static void hash(lane *of, int count)
{
    permute(of, of->once, of->labels, count);
    for (int at = 0; at < count; at++)
        of->hashes[at] ^= of->once[at];
    permute(of, of->hashes, of->hashes, count);
    for (int at = 0; at < count; at++)
        of->hashes[at] ^= of->once[at];
}

static void garble_layer(lane *of, int gates, const block *left, const block *right, block *out)
{
    block *labels = of->labels, *hashes = of->hashes;
    block *left_one = labels + 2 * gates, *right_one = labels + 3 * gates;
    for (int at = 0; at < gates; at++) {
        uint64_t tweak = of->tweak ^ (uint64_t)(2 * (of->gate + at));
        labels[at] = left[at];
        labels[gates + at] = right[at];
        left_one[at] = left[at] ^ of->offset;
        right_one[at] = right[at] ^ of->offset;
        hashes[at] = hashes[2 * gates + at] = (block){tweak, 0};
        hashes[gates + at] = hashes[3 * gates + at] = (block){tweak | 1, 0};
    }
    hash(of, CHANNELS * gates);
    for (int at = 0; at < gates; at++) {
        block of_left = hashes[at], of_right = hashes[gates + at];
        block select_left = select_mask(left[at]), select_right = select_mask(right[at]);
        block generator = of_left ^ hashes[2 * gates + at] ^ (select_right & of->offset);
        block evaluator = of_right ^ hashes[3 * gates + at]; /* sent with the left label */
        of->rows[of->gate + at][0] = generator;
        of->rows[of->gate + at][1] = evaluator ^ left[at];
        out[at] = of_left ^ (select_left & generator) ^ of_right ^ (select_right & evaluator);
    }
    of->gate += gates;
}

static void evaluate_layer(lane *of, int gates, const block *left, const block *right, block *out)
{
    block *labels = of->labels, *hashes = of->hashes;
    for (int at = 0; at < gates; at++) {
        uint64_t tweak = of->tweak ^ (uint64_t)(2 * (of->gate + at));
        labels[at] = left[at];
        labels[gates + at] = right[at];
        hashes[at] = (block){tweak, 0};
        hashes[gates + at] = (block){tweak | 1, 0};
    }
    hash(of, 2 * gates);
    for (int at = 0; at < gates; at++) {
        const kept *row = of->rows[of->gate + at];
        out[at] = hashes[at] ^ (select_mask(left[at]) & row[0])
                ^ hashes[gates + at] ^ (select_mask(right[at]) & (row[1] ^ left[at]));
    }
    of->gate += gates;
}

/* (s, k) with a + b + c = s + k mod 2^48, for one triple of numbers or two: one layer. */
static void save_carries(lane *of, and_layer land, int count, const block *const triples[][3], number *sums,
                         number *carries)
{
    block left[WIDEST], right[WIDEST], products[WIDEST];
    for (int at = 0; at < count; at++) {
        const block *a = triples[at][0], *b = triples[at][1], *c = triples[at][2];
        for (int bit = 0; bit < LOW; bit++) {
            left[at * LOW + bit] = a[bit] ^ c[bit];
            right[at * LOW + bit] = b[bit] ^ c[bit];
        }
    }
    land(of, count * LOW, left, right, products);
    for (int at = 0; at < count; at++) {
        const block *a = triples[at][0], *b = triples[at][1], *c = triples[at][2];
        for (int bit = 0; bit < BITS; bit++)
            sums[at][bit] = a[bit] ^ b[bit] ^ c[bit];
        carries[at][0] = (block){0, 0};
        for (int bit = 0; bit < LOW; bit++)
            carries[at][bit + 1] = products[at * LOW + bit] ^ c[bit];
    }
}

/* The carry out of all bits: (G, P) of neighbours combine as (Gh ^ Ph*Gl, Ph*Pl). Overwrites both. */
static block top_carry(lane *of, and_layer land, block *generate, block *propagate)
{
    for (int width = LOW; width > 1; width -= width / 2) {
        block left[WIDEST], right[WIDEST], products[WIDEST];
        int pairs = width / 2;
        for (int at = 0; at < pairs; at++) {
            left[at] = propagate[2 * at + 1];
            right[at] = generate[2 * at];
        }
        for (int at = 1; at < pairs; at++) { /* nothing carries into bit 0: the lowest block's own is never used */
            left[pairs + at - 1] = propagate[2 * at + 1];
            right[pairs + at - 1] = propagate[2 * at];
        }
        land(of, 2 * pairs - 1, left, right, products);
        for (int at = 0; at < pairs; at++)
            generate[at] = generate[2 * at + 1] ^ products[at];
        for (int at = 1; at < pairs; at++)
            propagate[at] = products[pairs + at - 1];
        if (width % 2) {
            generate[pairs] = generate[width - 1];
            propagate[pairs] = propagate[width - 1];
        }
    }
    return generate[0];
}

/* The sign bit's wire of the sum of six numbers, as `exceeds` of protocol/circuit.py. */
static block exceeds(lane *of, and_layer land, number *x)
{
    number sums[2], carries[2], one, two, three, four;
    block generate[LOW], propagate[BITS];
    save_carries(of, land, 2, (const block *const[][3]){{x[0], x[1], x[2]}, {x[3], x[4], x[5]}}, sums, carries);
    save_carries(of, land, 1, (const block *const[][3]){{sums[0], sums[1], carries[0]}}, &one, &two);
    save_carries(of, land, 1, (const block *const[][3]){{one, two, carries[1]}}, &three, &four);
    land(of, LOW, three, four, generate);
    for (int bit = 0; bit < BITS; bit++)
        propagate[bit] = three[bit] ^ four[bit];
    return propagate[LOW] ^ top_carry(of, land, generate, propagate);
}

/* Runs one lane and leaves in `hashes` those of its output wire's label and, of a garbler, of the other. */
static block run(lane *of, and_layer land, const kept *labels, int pads)
{
    number x[INPUTS];
    memcpy(x, labels, sizeof x);
    block wire = exceeds(of, land, x);
    block tweak = {of->tweak ^ OUTPUT_TWEAK, 0};
    of->labels[0] = wire;
    of->labels[1] = wire ^ of->offset;
    of->hashes[0] = of->hashes[1] = tweak;
    hash(of, pads);
    return select_mask(wire);
}

/* An offset as it is drawn, but for its last bit: select bits of a wire's two labels differ. */
static inline block offset_of(block drawn)
{
    return drawn | (block){1, 0};
}

/* Runs all lanes: of key k, 16 bytes, the next counts[k]; each key numbers its lanes from 0. Returns 1, or 0 where
 * OpenSSL refused. `offsets` is null for an evaluator. Of each lane a garbler turns the two blocks `in`, by bit, into
 * the two rows `out`, by select bit; an evaluator opens one of the two rows `in`. */
static int run_all(and_layer land, int keys, const unsigned char *aes_keys, const int32_t *counts, const kept *labels,
                   const kept *offsets, kept *rows, const kept *in, kept *out)
{
    lane of;
    of.pi = ctx_new();
    of.offset = (block){0, 0};
    of.failed = !of.pi;
    for (int key = 0; key < keys && !of.failed; key++) {
        if (encrypt_init(of.pi, aes_128_ecb(), NULL, aes_keys + KEY_BYTES * key, NULL) != 1)
            of.failed = 1;
        for (int32_t number = 0; number < counts[key] && !of.failed; number++) {
            of.tweak = (uint64_t)TWEAKS_PER_LANE * (uint64_t)number;
            of.gate = 0;
            of.rows = (kept (*)[2])rows;
            if (offsets)
                of.offset = offset_of(*offsets++);
            block select = run(&of, land, labels, offsets ? 2 : 1);
            if (offsets) {
                block zero = of.hashes[0] ^ in[0], one = of.hashes[1] ^ in[1];
                block swap = (zero ^ one) & select;
                *out++ = zero ^ swap;
                *out++ = one ^ swap;
            } else {
                *out++ = of.hashes[0] ^ in[0] ^ ((in[0] ^ in[1]) & select);
            }
            labels += INPUTS * BITS;
            rows += 2 * ANDS;
            in += 2;
        }
    }
    if (of.pi)
        ctx_free(of.pi);
    return !of.failed;
}

/* Zero labels [lanes][6][48], offsets [lanes] and what the outputs say, by bit [lanes][2], in; table [lanes][321][2] and
 * encrypted outputs, by select bit [lanes][2], out. */
int half_gates_garble(int keys, const void *aes_keys, const void *counts, const void *labels, const void *offsets,
                      const void *said, void *table, void *outputs)
{
    return run_all(garble_layer, keys, aes_keys, counts, labels, offsets, table, said, outputs);
}

/* Active labels [lanes][6][48], table and encrypted outputs in; what the outputs say [lanes] out. */
int half_gates_evaluate(int keys, const void *aes_keys, const void *counts, const void *labels, const void *table,
                        const void *outputs, void *said)
{
    return run_all(evaluate_layer, keys, aes_keys, counts, labels, NULL, (void *)table, outputs, said);
}

/* Zero labels [lanes][6][48], offsets [lanes] and numbers [lanes][6] in; the labels of the numbers' bits out. */
void half_gates_activate(int lanes, const kept *labels, const kept *offsets, const unsigned char *numbers, kept *active)
{
    for (int lane = 0; lane < lanes; lane++)
        for (int input = 0; input < INPUTS; input++) {
            uint64_t number;
            memcpy(&number, numbers, sizeof number);
            numbers += sizeof number;
            for (int bit = 0; bit < BITS; bit++)
                *active++ = *labels++ ^ (select_mask((block){number >> bit, 0}) & offset_of(offsets[lane]));
        }
}

/* AES-256-CTR from zero under each key of 32 bytes: sizes[at] bytes of its stream, one after the other, to `out`. */
int half_gates_streams(int keys, const unsigned char *stream_keys, const int32_t *sizes, unsigned char *out)
{
    static const unsigned char zero[16];
    EVP_CIPHER_CTX *ctx = ctx_new();
    int good = ctx != NULL;
    for (int at = 0; at < keys && good; at++) {
        int done = 0;
        memset(out, 0, (size_t)sizes[at]);
        good = encrypt_init(ctx, aes_256_ctr(), NULL, stream_keys + STREAM_KEY_BYTES * at, zero) == 1
            && encrypt_update(ctx, out, &done, out, sizes[at]) == 1 && done == sizes[at];
        out += sizes[at];
    }
    if (ctx)
        ctx_free(ctx);
    return good;
}
