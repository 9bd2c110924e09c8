/*
 * fuzz.h
 *	  What the fuzz targets share: taking input apart, and judging.
 *
 * A target is a function that gets any bytes.  It must not only survive them:
 * FUZZ_CHECK states what must be true of the results.  Copies of parts of the
 * input are exactly as long as the part, so that a read past its end is seen.
 */
#ifndef BW_FUZZ_H
#define BW_FUZZ_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition) \
	do { \
		if (!(condition)) \
		{ \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
			abort(); \
		} \
	} while (0)

/* What is left of the input. */
typedef struct Input
{
	const uint8_t *at;
	size_t		left;
} Input;

static inline uint8_t
input_byte(Input *input)
{
	if (input->left == 0)
		return 0;
	input->left--;
	return *input->at++;
}

/* A copy of what stands before the next such byte, which is dropped; free it. */
static inline char *
input_until(Input *input, char end, size_t *length)
{
	const uint8_t *stop = input->left > 0 ? memchr(input->at, end, input->left) : NULL;
	char	   *copy;

	*length = stop != NULL ? (size_t) (stop - input->at) : input->left;
	copy = malloc(*length > 0 ? *length : 1);
	memcpy(copy, input->at, *length);
	input->at += *length;
	input->left -= *length;
	if (input->left > 0)
	{
		input->at++;
		input->left--;
	}
	return copy;
}

#endif							/* BW_FUZZ_H */
