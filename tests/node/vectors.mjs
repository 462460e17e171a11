// Answers for Node to the questions that Python is asked with the same vectors, one JSON object a line on standard input:
// {"book": FILE} with what that book holds, {"pence": TEXT} with the pence of an amount, or null.
import { createInterface } from 'node:readline';
import { parsePence } from '../../docs/integration/amounts.mjs';
import { SaleBook } from '../../docs/integration/sale_book.mjs';

function answer({ book, pence }) {
  if (book !== undefined) {
    const read = new SaleBook(book, null, null);
    return { open: read.open(), untold: read.untold(), set_aside: read.damaged.map(({ line }) => line) };
  }
  try {
    return parsePence(pence);
  } catch {
    return null;
  }
}

for await (const line of createInterface({ input: process.stdin })) console.log(JSON.stringify(answer(JSON.parse(line))));
