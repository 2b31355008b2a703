// The documented React hook on a page without a screen, with what chat.mjs needs of a chat.
import { createElement, useEffect } from "react";
import { create } from "react-test-renderer";
import { useFermataChat } from "./use-fermata-chat.js";

export async function openPage({ url, key, sessionId, chatId, activeStreamId = null, messages = [] }) {
  const chat = { id: chatId, activeStreamId };
  let value;
  await new Promise((mounted) => {
    function Page() {
      value = useFermataChat({ url, key, sessionId, chat, messages });
      useEffect(mounted, []);
      return null;
    }
    create(createElement(Page));
  });
  return {
    id: chatId,
    get status() {
      return value.status;
    },
    get error() {
      return value.error;
    },
    get messages() {
      return value.messages;
    },
    sendMessage: (message) => value.sendMessage(message),
  };
}
