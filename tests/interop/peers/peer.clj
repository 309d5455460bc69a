;; grpc-java, as the tests command; commands.js has the commands:
;;
;;   ./run peer.clj HOST:PORT
(ns peer
  (:import (com.google.gson Gson)
           (com.google.protobuf MessageLite)
           (com.tidegate.v1 EventServiceGrpc PublishRequest SubscribeRequest)
           (io.grpc CallOptions Context Context$CancellableContext ManagedChannel ManagedChannelBuilder Metadata
                    Metadata$Key Status)
           (io.grpc.stub ClientCalls StreamObserver)
           (java.util Base64 Iterator Map)
           (java.util.concurrent LinkedBlockingQueue)))

(set! *warn-on-reflection* true)

;; ===== Answers =====

(def ^:private output (Object.))

(defn- print-answer [answer]
  (locking output
    (println (.toJson (Gson.) ^Object answer))))

(defn- base64 [^bytes content]
  (.encodeToString (Base64/getEncoder) content))

(defn- trailers [^Metadata metadata]
  (for [^String key (some-> metadata .keys)]
    [key (if (.endsWith key Metadata/BINARY_HEADER_SUFFIX)
           (base64 (.get metadata (Metadata$Key/of key Metadata/BINARY_BYTE_MARSHALLER)))
           (.get metadata (Metadata$Key/of key Metadata/ASCII_STRING_MARSHALLER)))]))

(defn- ending [^Throwable error]
  (let [status (Status/fromThrowable error)]
    {"code" (.value (.getCode status))
     "message" (or (.getDescription status) "")
     "trailers" (trailers (Status/trailersFromThrowable error))}))

;; ===== Calls =====

;; `next` is a function that waits for a response, is nil at the end, or throws.
(defrecord Call [next ^Context$CancellableContext context ^StreamObserver requests answered])

(defn- within
  "Calls the function in a context that cancels what it begins."
  [^Context$CancellableContext context function]
  (.call context function))

(defn- begin-with-many
  "A call with many requests, and what takes them."
  [channel method]
  (let [responses (LinkedBlockingQueue.)
        observer (reify StreamObserver
                   (onNext [_ response] (.put responses response))
                   (onError [_ error] (.put responses error))
                   (onCompleted [_] (.put responses ::end)))
        call (.newCall ^ManagedChannel channel method CallOptions/DEFAULT)
        requests (ClientCalls/asyncBidiStreamingCall call observer)]
    [#(let [response (.take responses)]
        (cond
          (= response ::end) nil
          (instance? Throwable response) (throw response)
          :else response))
     requests]))

(defn- begin [^ManagedChannel channel method ^bytes request]
  (let [context (.withCancellation (Context/current))
        [next requests]
        (within context
                (fn []
                  (case method
                    "Subscribe"
                    (let [^Iterator responses (ClientCalls/blockingServerStreamingCall
                                               channel (EventServiceGrpc/getSubscribeMethod) CallOptions/DEFAULT
                                               (SubscribeRequest/parseFrom request))]
                      [#(when (.hasNext responses) (.next responses))])
                    "Publish"
                    (let [answer (ClientCalls/futureUnaryCall
                                  (.newCall channel (EventServiceGrpc/getPublishMethod) CallOptions/DEFAULT)
                                  (PublishRequest/parseFrom request))]
                      [#(.get answer)])
                    "PublishStream" (begin-with-many channel (EventServiceGrpc/getPublishStreamMethod)))))]
    ;; Answers come in the order in which they are asked for.
    (->Call next context requests (agent nil))))

(defn- answer [id {:keys [next]}]
  (print-answer
   (assoc (try
            (if-let [^MessageLite response (next)]
              {"response" (base64 (.toByteArray response))}
              {"code" 0})
            (catch Exception error
              (ending error)))
          "call" id)))

;; ===== Commands =====

(let [[^String target] *command-line-args*
      channel (-> (ManagedChannelBuilder/forTarget target) .usePlaintext .build)
      calls (atom {})]
  (doseq [line (line-seq (java.io.BufferedReader. *in*))]
    (let [{:strs [do call method request]} (into {} (.fromJson (Gson.) ^String line ^Class Map))
          request (some->> ^String request (.decode (Base64/getDecoder)))]
      (when (= do "begin")
        (swap! calls assoc call (begin channel method request)))
      (let [{:keys [context requests answered] :as begun} (@calls call)]
        (case do
          "send" (.onNext ^StreamObserver requests (PublishRequest/parseFrom ^bytes request))
          "end" (.onCompleted ^StreamObserver requests)
          "next" (send-off answered (fn [_] (answer call begun)))
          "cancel" (.cancel ^Context$CancellableContext context nil)
          "begin" nil))))
  (.shutdownNow channel)
  (System/exit 0))
