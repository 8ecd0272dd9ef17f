import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.processor.api.ContextualProcessor;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;

/** Answers each event with one of the same data and key, with an id of its own, exactly once, until it is killed. */
public class Transform {
    record Named(String name, byte[] value) {}

    static class Answer extends ContextualProcessor<byte[], byte[], byte[], byte[]> {
        private final List<Named> headers;

        Answer(List<Named> headers) {
            this.headers = headers;
        }

        @Override
        public void process(Record<byte[], byte[]> event) {
            RecordMetadata place = context().recordMetadata().orElseThrow();
            RecordHeaders answered = new RecordHeaders();
            for (Named header : headers) {
                answered.add(header.name(), header.name().equals("ce_id") ? id(place, header.value().length) : header.value());
            }
            context().forward(event.withHeaders(answered));
        }

        /** As many digits as the id in the example has. */
        private static byte[] id(RecordMetadata place, int length) {
            byte[] id = new byte[length];
            long rest = place.offset() * 100 + place.partition();
            for (int at = length - 1; at >= 0; at--) {
                id[at] = (byte) ('0' + rest % 10);
                rest /= 10;
            }
            return id;
        }
    }

    /** Arguments: the broker, from, to, the application, the file of headers, the commit interval, threads, a directory. */
    public static void main(String[] arguments) throws Exception {
        List<Named> headers = new ArrayList<>();
        for (String line : Files.readAllLines(Path.of(arguments[4]))) {
            int at = line.indexOf('=');
            headers.add(new Named(line.substring(0, at), line.substring(at + 1).getBytes(StandardCharsets.UTF_8)));
        }
        Properties settings = new Properties();
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[0]);
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, arguments[3]);
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, arguments[5]);
        settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, arguments[6]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, arguments[7]);
        settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        settings.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
        // By itself a producer of Streams waits for a tenth of a second to fill a batch.
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), "1");
        settings.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), "262144");

        StreamsBuilder builder = new StreamsBuilder();
        builder.stream(arguments[1], Consumed.with(Serdes.ByteArray(), Serdes.ByteArray()))
            .process(() -> new Answer(headers))
            .to(arguments[2], Produced.with(Serdes.ByteArray(), Serdes.ByteArray()));
        new KafkaStreams(builder.build(), settings).start();
        new CountDownLatch(1).await();
    }
}
