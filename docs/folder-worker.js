// Of the documentation site where it is opened from its folder, in which browsers allow no workers: the search, which is one,
// runs in a hidden frame, whose messages go through this class.
if (location.protocol === "file:") window.Worker = class extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    this.begun = new Promise((done) => { frame.onload = () => {
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = this.inside.document.createElement("script");
      script.onload = done;
      script.src = url;
      this.inside.document.body.append(script);
    }; });
    document.body.append(frame);
  }

  postMessage(data) {
    this.begun.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
  }
};
