"""Compiled loops behind `generate`, `solve` and `canonical`: boards are int8 digits, 0 for a blank; bit d-1 stands for digit d."""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

Board = NDArray[np.int8]
Boards = NDArray[np.int8]
Masks = NDArray[np.int32]
Words = NDArray[np.uint64]

DEAD, OPEN, FULL = -1, 0, 1
ATTEMPTS = 1000  # grids tried for one puzzle of a given number of clues
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """The loop, compiled at first use; kept on disk where numba finds a folder that it may write to."""
    loop = inspect.unwrap(loop)  # a type checker that wraps functions at import would hide the loop from numba
    try:
        return numba.njit(cache=True, nogil=True)(loop)
    except RuntimeError:  # "cannot cache function: no locator available": a read-only installation
        return numba.njit(nogil=True)(loop)


@compiled
def mix(word: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64 bits."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@compiled
def draw(stream: Words, bound: int) -> np.int64:
    """A number below `bound`: the next of splitmix64's stream."""
    stream[0] = stream[0] + GOLDEN
    return np.int64(mix(stream[0]) % np.uint64(bound))


@compiled
def _bits(mask: int) -> int:
    """How many bits are set."""
    count = 0
    while mask:
        mask &= mask - 1
        count += 1
    return count


@compiled
def _digit(bit: int) -> int:
    """The digit of one bit."""
    digit = 0
    while bit:
        bit >>= 1
        digit += 1
    return digit


@compiled
def _place(board: Board, used: Masks, site: int, bit: int, side: int, high: int, wide: int) -> None:
    """Write the digit of `bit` and mark its row, column and box."""
    row, column = site // side, site % side
    board[site] = _digit(bit)
    used[0, row] |= bit
    used[1, column] |= bit
    used[2, row // high * high + column // wide] |= bit


@compiled
def _propagate(
    board: Board, used: Masks, seen: Masks, side: int, high: int, wide: int, ban_site: int, ban_bit: int
) -> tuple[int, int, int]:
    """Naked and hidden singles to exhaustion; the state of the board, and the open cell with the fewest candidates."""
    full = (1 << side) - 1
    while True:
        changed, best_site, best_mask, best_count = False, -1, 0, side + 1
        seen[:] = 0  # per unit: digits with a place, digits with two
        for site in range(side * side):
            if board[site]:
                continue
            row, column = site // side, site % side
            box = row // high * high + column // wide
            mask = full & ~(used[0, row] | used[1, column] | used[2, box])
            if site == ban_site:
                mask &= ~ban_bit
            if mask == 0:
                return DEAD, -1, 0
            if mask & (mask - 1) == 0:
                _place(board, used, site, mask, side, high, wide)
                changed = True
                continue
            count = _bits(mask)
            if count < best_count:
                best_site, best_mask, best_count = site, mask, count
            seen[1, row] |= seen[0, row] & mask
            seen[0, row] |= mask
            seen[1, side + column] |= seen[0, side + column] & mask
            seen[0, side + column] |= mask
            seen[1, 2 * side + box] |= seen[0, 2 * side + box] & mask
            seen[0, 2 * side + box] |= mask
        if changed:
            continue
        if best_site < 0:
            return FULL, -1, 0
        hidden_any = 0
        for kind in range(3):
            for unit in range(side):
                number = kind * side + unit
                if full & ~(used[kind, unit] | seen[0, number]):
                    return DEAD, -1, 0
                seen[1, number] = seen[0, number] & ~seen[1, number]
                hidden_any |= seen[1, number]
        if hidden_any == 0:
            return OPEN, best_site, best_mask
        for site in range(side * side):
            if board[site]:
                continue
            row, column = site // side, site % side
            box = row // high * high + column // wide
            mask = (seen[1, row] | seen[1, side + column] | seen[1, 2 * side + box]) & ~(used[0, row] | used[1, column] | used[2, box])
            if site == ban_site:
                mask &= ~ban_bit
            if mask == 0:
                continue
            if mask & (mask - 1):
                return DEAD, -1, 0  # two digits have this cell as their only place
            _place(board, used, site, mask, side, high, wide)


@compiled
def _search(
    givens: Board,
    side: int,
    high: int,
    wide: int,
    limit: int,
    ban_site: int,
    ban_digit: int,
    shuffle: bool,
    stream: Words,
    boards: Boards,
    used: Masks,
    seen: Masks,
    branch: Masks,
    found: Board,
) -> tuple[int, int]:
    """How many solutions there are, up to `limit`, and how many digits were tried; the first solution goes to `found`."""
    level, count, guesses = 0, 0, 0
    ban_bit = (1 << ban_digit) >> 1
    boards[0] = 0
    used[0] = 0
    for site in range(side * side):
        if givens[site]:
            row, column = site // side, site % side
            bit = 1 << (givens[site] - 1)
            if (used[0, 0, row] | used[0, 1, column] | used[0, 2, row // high * high + column // wide]) & bit:
                return 0, 0
            _place(boards[0], used[0], site, bit, side, high, wide)
    state, site, mask = _propagate(boards[0], used[0], seen, side, high, wide, ban_site, ban_bit)
    while True:
        if state == OPEN:
            branch[level, 0], branch[level, 1] = site, mask
        else:
            if state == FULL:
                if count == 0:
                    found[:] = boards[level]
                count += 1
                if count >= limit:
                    return count, guesses
            level -= 1
        while level >= 0 and branch[level, 1] == 0:
            level -= 1
        if level < 0:
            return count, guesses
        mask = branch[level, 1]
        if shuffle:
            for _ in range(draw(stream, _bits(mask))):
                mask &= mask - 1
        bit = mask & -mask
        branch[level, 1] &= ~bit
        guesses += 1
        boards[level + 1] = boards[level]
        used[level + 1] = used[level]
        level += 1
        _place(boards[level], used[level], branch[level - 1, 0], bit, side, high, wide)
        state, site, mask = _propagate(boards[level], used[level], seen, side, high, wide, ban_site, ban_bit)


@compiled
def solve_boards(
    boards: Boards, side: int, high: int, wide: int, solutions: Boards, counts: NDArray[np.int64], guesses: NDArray[np.int64]
) -> None:
    """Fill `solutions`, `counts` (up to 2) and `guesses`, a row for each board."""
    sites = side * side
    stack, used = np.empty((sites + 1, sites), np.int8), np.empty((sites + 1, 3, side), np.int32)
    seen, branch, stream = np.empty((2, 3 * side), np.int32), np.empty((sites + 1, 2), np.int32), np.zeros(1, np.uint64)
    for row in range(boards.shape[0]):
        counts[row], guesses[row] = _search(
            boards[row], side, high, wide, 2, -1, 0, False, stream, stack, used, seen, branch, solutions[row]
        )


@compiled
def make_boards(
    seed: np.uint64, first: int, side: int, high: int, wide: int, clues: int, boards: Boards, solutions: Boards, guesses: NDArray[np.int64]
) -> int:
    """Fill `boards`, `solutions` and `guesses` with puzzles `first`, `first` + 1, ... of a seed; the number filled."""
    sites = side * side
    stack, used = np.empty((sites + 1, sites), np.int8), np.empty((sites + 1, 3, side), np.int32)
    seen, branch, stream = np.empty((2, 3 * side), np.int32), np.empty((sites + 1, 2), np.int32), np.zeros(1, np.uint64)
    order, blank, spare = np.empty(sites, np.int64), np.zeros(sites, np.int8), np.empty(sites, np.int8)
    for number in range(boards.shape[0]):
        stream[0] = mix(mix(seed + GOLDEN) ^ np.uint64(first + number))
        puzzle = boards[number]
        done = False
        for _ in range(ATTEMPTS):
            _search(blank, side, high, wide, 1, -1, 0, True, stream, stack, used, seen, branch, solutions[number])
            puzzle[:] = solutions[number]
            for site in range(sites):
                other = draw(stream, site + 1)
                order[site] = order[other]
                order[other] = site
            left = sites
            for cell in order:
                if left == clues:
                    break
                digit = puzzle[cell]
                puzzle[cell] = 0
                # The clue may go if no solution has another digit there: a shorter search than counting solutions.
                rest, _ = _search(puzzle, side, high, wide, 1, cell, digit, False, stream, stack, used, seen, branch, spare)
                if rest:
                    puzzle[cell] = digit
                else:
                    left -= 1
            if clues == 0 or left == clues:
                done = True
                break
        if not done:
            return number
        _, guesses[number] = _search(puzzle, side, high, wide, 2, -1, 0, False, stream, stack, used, seen, branch, spare)
    return len(boards)


@compiled
def canonical_boards(boards: Boards, side: int, rows: NDArray[np.int64], columns: NDArray[np.int64], turn: bool, best: Boards) -> None:
    """Fill `best` with the smallest symmetric image of each board, digits renamed in order of appearance."""
    names, image = np.empty(side + 1, np.int8), np.empty(side * side, np.int8)
    group = rows.shape[0] // side  # the line orders are sorted, so that as many share their first line
    for number in range(boards.shape[0]):
        board, least = boards[number], best[number]
        least[:] = side + 1
        for flip in range(2 if turn else 1):
            for column in columns:
                choice = 0
                while choice < rows.shape[0]:
                    line = rows[choice]
                    names[:] = 0
                    last, site, sign = 0, 0, 0
                    while site < side * side:
                        down, across = line[site // side], column[site % side]
                        value = board[across * side + down] if flip else board[down * side + across]
                        if value:
                            if names[value] == 0:
                                last += 1
                                names[value] = last
                            value = names[value]
                        image[site] = value
                        if sign == 0 and value != least[site]:
                            if value > least[site]:
                                sign = 1
                                break
                            sign = -1
                        site += 1
                    if sign < 0:
                        least[:] = image
                    if sign > 0 and site < side:
                        choice += group - choice % group  # worse in its first line, and so are the orders that share it
                    else:
                        choice += 1


@compiled
def fingerprint_boards(boards: Boards, side: int, high: int, wide: int, turn: bool, prints: Words) -> None:
    """Fill `prints` with a number per board that all its symmetric images share (colour refinement of clues and units)."""
    sites, rounds = side * side, 3
    cells, units = np.empty(sites, np.uint64), np.empty(3 * side, np.uint64)
    blocks, digits = np.empty(2 * side, np.uint64), np.empty(side + 1, np.uint64)
    by_column = np.uint64(0 if turn else 1)
    for number in range(boards.shape[0]):
        board = boards[number]
        for site in range(sites):
            cells[site] = np.uint64(1 if board[site] else 0)
        for depth in range(rounds):
            units[:], blocks[:], digits[:] = np.uint64(depth), np.uint64(depth), np.uint64(depth)
            for site in range(sites):
                word = mix(cells[site] + GOLDEN)
                row, column = site // side, site % side
                units[row] += word
                units[side + column] += word
                units[2 * side + row // high * high + column // wide] += word
                digits[board[site]] += word
            for line in range(side):  # a band is known by its rows, a stack by its columns
                blocks[line // high] += mix(units[line])
                blocks[side + line // wide] += mix(units[side + line])
            for site in range(sites):
                row, column = site // side, site % side
                across = mix(mix(units[row]) + blocks[row // high])
                down = mix(mix(units[side + column]) + blocks[side + column // wide] + by_column)
                box = mix(units[2 * side + row // high * high + column // wide] + np.uint64(3))
                name = mix(digits[board[site]] + np.uint64(4)) if board[site] else np.uint64(5)
                cells[site] = mix(mix(cells[site] + np.uint64(6)) + across + down + box + name)
        total = np.uint64(0)
        for site in range(sites):
            total += mix(cells[site])
        prints[number] = total
