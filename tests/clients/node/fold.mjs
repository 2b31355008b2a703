// Reads one JSON array of chunks a line and answers with what both versions of the `ai` package make of it:
// {"6": {"message", "refused", "resubmits"}, "7": {...}}.
import { createInterface } from "node:readline";
import * as ai6 from "ai";
import * as ai7 from "ai7";

async function fold(ai, chunks) {
  const refused = [];
  const schema = ai.asSchema(ai.uiMessageChunkSchema);
  for (const chunk of chunks) {
    const checked = await schema.validate(chunk);
    if (!checked.success) refused.push(`${chunk.type}: ${checked.error.message}`);
  }
  const stream = new ReadableStream({
    start(controller) {
      for (const chunk of chunks) controller.enqueue(chunk);
      controller.close();
    },
  });
  let message = null;
  const onError = (error) => refused.push(String(error.message));
  for await (const snapshot of ai.readUIMessageStream({ stream, onError })) message = snapshot;
  const resubmits = message !== null && ai.lastAssistantMessageIsCompleteWithToolCalls({ messages: [message] });
  return { message, refused, resubmits };
}

for await (const line of createInterface({ input: process.stdin })) {
  const chunks = JSON.parse(line);
  const answer = { 6: await fold(ai6, structuredClone(chunks)), 7: await fold(ai7, structuredClone(chunks)) };
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
