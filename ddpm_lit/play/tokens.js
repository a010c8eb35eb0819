// A caption as whole numbers: byte pair encoding, as notebook 51 derives it.
import {Problem} from './weights.js';

// white space as Python counts it, without the four signs that Unicode does not; \s is another set
const WHITE = '\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const WORDS = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${WHITE}\\p{L}\\p{N}]+|[${WHITE}]+(?![^${WHITE}])|[${WHITE}]+`, 'gu');
const SPACES = new RegExp(`[${WHITE}\\x1c-\\x1f]+`, 'u');
const SPECIAL = ['<|pad|>', '<|start|>', '<|end|>'];  // the last three ids

// one space between words, none at the ends
export const singleSpaced = (text) => text.split(SPACES).filter(Boolean).join(' ');

export class Tokenizer {
  // source: a line of comment, then two pieces a line, those merged first first
  constructor(source, length = 32) {
    const printable = [...Array(256).keys()].filter(b => b > 32 && b < 127 || b > 160 && b !== 173);
    const bytes = [...printable, ...[...Array(256).keys()].filter(b => !printable.includes(b))];
    this.byte = Array(256);  // byte -> id
    bytes.forEach((b, id) => this.byte[b] = id);

    // a byte shows as itself, or as one of the signs from 256 on
    const shown = bytes.map((b, id) => String.fromCharCode(id < printable.length ? b : 256 + id - printable.length));
    const place = new Map(shown.map((piece, id) => [piece, id]));
    const pairs = source.split('\n').slice(1).filter(Boolean).map(line => line.split(' '));
    this.rank = new Map();   // 'id id' -> the id of both together; the lower, the earlier
    for (const [a, b] of pairs) {
      const [i, j, both] = [place.get(a), place.get(b), place.size];
      if (i === undefined || j === undefined) throw new Problem('The list of word pieces is damaged: reload the page.');
      this.rank.set(`${i} ${j}`, both);
      place.set(a + b, both);
    }
    [this.pad, this.start, this.end] = SPECIAL.map((_, i) => 256 + pairs.length + i);
    this.length = length;
  }

  // the pair of the lowest rank is merged first, of equal ones the leftmost (51.4)
  word(word) {
    const ids = [...new TextEncoder().encode(word)].map(b => this.byte[b]);
    for (;;) {
      const ranks = ids.map((id, i) => this.rank.get(`${id} ${ids[i + 1]}`) ?? Infinity);
      const best = Math.min(...ranks);
      if (best === Infinity) return ids;
      ids.splice(ranks.indexOf(best), 2, best);
    }
  }

  encode(text) {
    if (/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text)) {
      throw new Problem('The caption holds half a sign: delete it, and write it anew.');
    }
    return (text.toLowerCase().match(WORDS) ?? []).flatMap(w => this.word(w));
  }

  // start, text, end, padding
  row(text) {
    const ids = [this.start, ...this.encode(text).slice(0, this.length - 2), this.end];
    return [...ids, ...Array(this.length - ids.length).fill(this.pad)];
  }
}
