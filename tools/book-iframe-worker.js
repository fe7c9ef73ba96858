/* Search of a page that was opened from a disk. A browser starts no worker from file://, so the script of the worker
   runs in a hidden frame, which takes and sends messages as a worker would. From a server nothing is changed. */
(() => {
  if (location.protocol !== "file:") return;

  class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      this.frame = frame.contentWindow;
      this.ready = new Promise(resolve => { this.loaded = resolve; });
      addEventListener("message", event => {
        if (event.source !== this.frame) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data }));
      });
      frame.contentWindow.loaded = () => this.loaded();
      const page = frame.contentDocument;
      page.open();
      page.write(`<script>postMessage = message => parent.dispatchEvent(
        new MessageEvent("message", { data: message, source: window }))<\/script>
        <script src="${new URL(url, location)}" onload="loaded()"><\/script>`);
      page.close();
    }

    postMessage(data) {
      this.ready.then(() => this.frame.dispatchEvent(new MessageEvent("message", { data, source: window })));
    }
  }

  window.IFrameWorker = window.Worker = IFrameWorker;
})();
