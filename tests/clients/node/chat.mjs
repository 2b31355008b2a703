// Chats of the published packages, told what to do by one JSON object a line and answering the same way.
// Runs in a directory with the packages to use, and beside the blocks of docs/clients.md.
import { createInterface } from "node:readline";
import { WorkflowChatTransport } from "@workflow/ai";
import { AbstractChat, DefaultChatTransport } from "ai";
import { fermataTransport } from "./fermata-transport.js";
import { fermataWorkflowTransport } from "./fermata-workflow-transport.js";
import { openPage } from "./hook.mjs";
import { stopTurn } from "./stop-turn.js";

// What every framework brings: a place for the messages, here without a screen.
class PlainState {
  status = "ready";
  error = undefined;
  constructor(messages) {
    this.messages = messages;
  }
  pushMessage = (message) => void (this.messages = [...this.messages, message]);
  popMessage = () => void (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index, message) => void (this.messages = this.messages.with(index, this.snapshot(message)));
  snapshot = (value) => structuredClone(value);
}

class Chat extends AbstractChat {
  constructor({ messages = [], ...options }) {
    super({ ...options, state: new PlainState(messages) });
  }
}

const chats = new Map();
const warnings = [];
console.error = console.warn = (...words) => warnings.push(words.map(String).join(" "));

// The transports with nothing but what their own documentation asks for.
function bareTransport({ url, key, sessionId }) {
  return new DefaultChatTransport({
    api: `${url}/api/chat`,
    headers: { "x-api-key": key },
    prepareSendMessagesRequest: ({ id, messages, trigger }) => ({
      body: { chatId: id, sessionId, messages, trigger },
    }),
  });
}

function bareWorkflowTransport({ url, key, sessionId, runId, ...options }) {
  return new WorkflowChatTransport({
    api: `${url}/api/chat`,
    ...options,
    prepareSendMessagesRequest: ({ id, messages }) => ({
      headers: { "content-type": "application/json", "x-api-key": key },
      body: { chatId: id, sessionId, messages },
    }),
    prepareReconnectToStreamRequest: ({ api }) => ({
      api: runId ? `${url}/api/chat/${runId}/stream` : api,
      headers: { "x-api-key": key },
    }),
  });
}

const transports = {
  bare: bareTransport,
  "bare-workflow": bareWorkflowTransport,
  documented: fermataTransport,
  "documented-workflow": fermataWorkflowTransport,
};

const verbs = {
  open({ chat, chatId, messages, transport, ...options }) {
    chats.set(chat, new Chat({ id: chatId, messages, transport: transports[transport](options) }));
  },
  async openPage({ chat, ...options }) {
    chats.set(chat, await openPage(options));
  },
  send: ({ chat, text, messageId }) =>
    chats.get(chat).sendMessage({ id: messageId, role: "user", parts: [{ type: "text", text }] }),
  resume: ({ chat }) => chats.get(chat).resumeStream(),
  // As the documented hook does: again after every cut, and not after an error of the turn.
  async resumeWhileCut({ chat }) {
    while (chats.get(chat).error instanceof TypeError) await chats.get(chat).resumeStream();
  },
  regenerate: ({ chat }) => chats.get(chat).regenerate(),
  detach: ({ chat }) => chats.get(chat).stop(),
  stop: ({ chat, ...options }) => stopTurn({ ...options, chatId: chats.get(chat).id }),
  look() {},
};

async function answer({ id, verb, ...options }) {
  const reply = { id };
  try {
    await verbs[verb](options);
  } catch (error) {
    reply.thrown = String(error?.stack ?? error);
  }
  const chat = chats.get(options.chat);
  reply.status = chat?.status;
  reply.error = chat?.error && `${chat.error.name}: ${chat.error.message}`;
  reply.messages = chat?.messages;
  reply.warnings = warnings.splice(0);
  process.stdout.write(`${JSON.stringify(reply)}\n`);
}

for await (const line of createInterface({ input: process.stdin })) void answer(JSON.parse(line));
